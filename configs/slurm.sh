#!/usr/bin/env bash
# One task a node, one process a GPU: sbatch --nodes 32 --gpus-per-node 8 configs/slurm.sh configs/datacompdr1b_b.yaml runs/b
# A preempted or failed job goes on when it is submitted again. On one machine: torchrun --nproc-per-node 8 -m mobileclip train CONFIG -o RUN
#SBATCH --job-name=mobileclip
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail
config=${1:?config} run=${2:?folder of the run}
gpus=${SLURM_GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}  # may have the type in front
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")  # whole: a pipe into head would now and then end scontrol, and so the script
exec srun torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${gpus##*:}" --shutdown-timeout 110 \
    --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "${hosts%%$'\n'*}:29500" \
    -m mobileclip train "$config" -o "$run"
