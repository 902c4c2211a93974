"""Memory on a device that has little: idle engines leave before a build, and the job says so."""

from __future__ import annotations

import sqlite3

from tests import networks
from tests.service import Service


def test_a_build_that_needs_more_than_is_free_has_idle_engines_unloaded_and_is_built_all_the_same(
    own_service: Service,
) -> None:
    model = networks.doubled().SerializeToString()
    own_service.start()
    with own_service.client() as client:
        first = own_service.build(client, model, "first")
        client.post("/engines/first/load")
        with sqlite3.connect(own_service.data_dir / "jetforge.db") as connection:  # as if it had taken a petabyte
            connection.execute("UPDATE engines SET built = json_set(built, '$.peak_bytes', 1125899906842624)")
        second = own_service.build(client, model, "second", labels="", simplify="false")
        engines = client.get("/engines").json()
        told = client.get(f"/jobs/{second['id']}/events").text
        quiet = client.get(f"/jobs/{first['id']}/events").text

    assert (first["state"], second["state"]) == ("succeeded", "succeeded")
    assert "idle engines were unloaded: first:1; no idle engine is left to unload" in told
    assert '"kind":"warning"' in told and "1 builds like it" in told
    assert [engine["warm"] for engine in engines["engines"]] == [None, None]
    assert "a guess from the size of the model" in quiet and '"kind":"warning"' not in quiet
