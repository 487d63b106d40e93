#!/bin/sh
# Submit examples/driver.py to a Ray cluster: RAY_API_SERVER_ADDRESS=http://HEAD:8265 examples/ray_job.sh STORE [OPTIONS of driver.py]
# Ray must be installed as ray[default], whose dashboard takes jobs, on the head and here.
# The driver runs on the cluster's head, which must see STORE. In a job, RAY_ADDRESS is set, so the driver joins the cluster by itself.
# On a cluster of several machines the actors need a server that all of them reach: --redis URL.
set -eu
store=$1
shift
exec ray job submit --working-dir "$(dirname "$0")" -- python driver.py --store "$store" "$@"
