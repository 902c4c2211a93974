// Numbers and times for people.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function bytes(count) {
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) [count, unit] = [count / 1024, unit + 1];
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${UNITS[unit]}`;
}

export const mib = (count) => bytes(count * 2 ** 20);

export function ms(value) {
  if (value == null) return "–";
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return `${value >= 100 ? Math.round(value) : value >= 1 ? value.toFixed(2) : value.toFixed(3)} ms`;
}

/** Seconds that have passed, as `80 ms`, `1.8 s`, `42 s`, `3 min 20 s`, `2 h 5 min`. */
export function seconds(value) {
  if (value < 0.95) return `${Math.round(value * 1000)} ms`;
  return value < 10 ? `${value.toFixed(1)} s` : counting(value);
}

/** Seconds that still pass: whole ones. */
export function counting(value) {
  const whole = Math.floor(value);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

export function ago(value) {
  if (value < 5) return "just now";
  if (value < 86400) return `${seconds(value)} ago`;
  return `${Math.floor(value / 86400)} d ago`;
}

export function percent(share, digits = 1) {
  return share == null ? "–" : `${(share * 100).toFixed(digits)} %`;
}

export function number(value) {
  if (value == null) return "null";
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) return String(value);
  return size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(2) : value.toPrecision(4);
}

export const shape = (lengths) => lengths.map((length) => (length < 0 ? "any" : length)).join(" × ") || "scalar";

export const clock = (iso) => new Date(iso).toLocaleTimeString();

export const shortId = (digest) => digest.replace("sha256:", "").slice(0, 12);

/** The value below which this share of the sorted values lies. */
export function quantile(sorted, share) {
  return sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
}
