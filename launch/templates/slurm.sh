#!/bin/bash
set -euo pipefail
mkdir -p @{directory}
job=$(squeue --me --noheader --name=@{name} --format=%i | head -n 1)
if [[ -z $job ]]; then
    job=$(
        sbatch --parsable <<'SBATCH'
@{sbatch}
SBATCH
    )
    echo "submitted job ${job%%;*} (@{name})" >&2
else
    echo "job $job (@{name}) is there already: following it" >&2
fi
touch @{log}
tail -n +1 -F @{log} &
trap 'kill %1' EXIT
# Ctrl-C ends the following, not the job; scancel ends the job.
while [[ -n $(squeue --me --noheader --name=@{name} --format=%i) ]]; do sleep 10; done
