# Sourced by the other scripts before they do anything: --help prints the comment at a script's head, and ends it.
for _word in "$@"; do
    case $_word in
        -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; exit ;;
    esac
done
