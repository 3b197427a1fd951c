#!/usr/bin/env bash
# Wait until the cloud takes this spot machine back, then tell Ray, so that runs save a checkpoint and go on elsewhere.
#
#   watch_spot.sh aws    # 2 minutes' notice
#   watch_spot.sh gcp    # 30 seconds' notice
#
# aws.yaml and gcp.yaml start it on every worker; a machine that is no spot machine never hears anything.
# METADATA names another metadata service, for tests.
set -euo pipefail

cloud=${1:-}
metadata=${METADATA:-http://169.254.169.254}

case $cloud in
    aws) within=100 ;;
    gcp) within=25 ;;
    *)
        echo "usage: watch_spot.sh aws|gcp" >&2
        exit 2
        ;;
esac

ask() {
    wget --quiet --timeout=5 --tries=1 --output-document=- "$@"
}

taken() {
    local token
    if [ "$cloud" = aws ]; then
        # The page is missing until the machine is about to be stopped or terminated.
        token=$(ask --method=PUT --header='X-aws-ec2-metadata-token-ttl-seconds: 60' "$metadata/latest/api/token") &&
            ask --header="X-aws-ec2-metadata-token: $token" "$metadata/latest/meta-data/spot/instance-action" >/dev/null
    else
        # Asked again and again: with wait_for_change there is no answer where the change comes before the question.
        [ "$(ask --header='Metadata-Flavor: Google' "$metadata/computeMetadata/v1/instance/preempted")" = TRUE ]
    fi
}

# One is enough: `ray up` may start Ray, and this, again.
exec 9>"${TMPDIR:-/tmp}/watch_spot.lock"
flock --nonblock 9 || exit 0

until taken; do
    sleep 1
done
echo "$(date): this machine will be taken"
for _ in 1 2 3; do
    lodisc leave --within "$within" 9>&- && exit 0
done
exit 1
