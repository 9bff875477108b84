#!/bin/bash
set -euo pipefail
state() { kubectl get jobset @{name} --ignore-not-found --output 'jsonpath={.status.terminalState}'; }
first=jobset.sigs.k8s.io/jobset-name=@{name},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0
# One that has ended makes room for the next; one that runs is followed: the manifest is the same.
if [[ -n $(state) ]]; then kubectl delete jobset @{name} --wait; fi
kubectl apply --filename - <<'MANIFEST'
@{manifest}
MANIFEST
# The log of process 0. Ctrl-C ends the following, not the job; kubectl delete jobset ends the job.
while [[ -z $(state) ]]; do
    kubectl logs --follow --tail=-1 --selector "$first" 2>/dev/null || true
    sleep 10
done
echo "jobset @{name}: $(state)" >&2
[[ $(state) == Completed ]]
