#!/bin/bash
set -euo pipefail
cd @{root}
place=(--zone=@{zone} --project=@{project})
state() {
    gcloud compute tpus queued-resources describe @{name} "${place[@]}" --format='value(state.state)' 2>/dev/null || true
}
release() { gcloud compute tpus queued-resources delete @{name} "${place[@]}" --force --quiet; }
everywhere() { gcloud compute tpus tpu-vm ssh @{name} "${place[@]}" --worker=all --command="$1"; }
obtain() {
    while true; do
        case $(state) in
        ACTIVE) return ;;
        "")
            gcloud compute tpus queued-resources create @{name} "${place[@]}" --node-id=@{name} \
                @{slice} --runtime-version=@{runtime} @{spot}
            ;;
        # Preempted, or refused: a queued resource is used once.
        FAILED | SUSPENDED) release ;;
        esac
        sleep 20
    done
}
prepare() {
    # The source tree as it is here, but for what git ignores.
    git ls-files -z --cached --others --exclude-standard | tar --create --gzip --null --files-from=- \
        --file="$archive"
    gcloud compute tpus tpu-vm scp "$archive" @{name}:headway.tar.gz "${place[@]}" --worker=all
    everywhere @{setup}
}
archive=$(mktemp --suffix=.tar.gz)
log=$(mktemp)
trap 'rm -f "$archive" "$log"' EXIT
for ((attempt = 0; attempt <= @{restarts}; attempt++)); do
    obtain
    if prepare; then everywhere @{train} 2>&1 | tee "$log" || true; fi
    # Every worker says at its end what headway's exit code was; a preempted one says nothing.
    codes=$(sed -n 's/^@{end}: //p' "$log" | sort -u | tr '\n' ' ')
    case " $codes" in
    " 0 ")
        release
        exit 0
        ;;
    *" 1 "* | *" 2 "*)
        echo "@{name}: a mistake or a bug. The slice is kept, and paid for until you give it back:" \
            "gcloud compute tpus queued-resources delete @{name} ${place[*]} --force" >&2
        exit 2
        ;;
    esac
    echo "@{name}: stopped (exit codes: ${codes:-none}); going on from the last checkpoint" >&2
done
exit 4
