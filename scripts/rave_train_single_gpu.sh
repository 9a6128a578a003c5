#!/usr/bin/env bash
# Train the MusicNet experiment, RAVE v2 in small without an adversarial loss, on one GPU.
#
#   bash scripts/rave_train_single_gpu.sh [further flags of rave_tools train]
#
# DB      database made by rave_preprocess.sh  (default: data/musicnet)
# OUT     folder of runs                       (default: runs)
# NAME    name of the run                      (default: musicnet)
# CONFIG  configuration                        (default: rave_v2_musicnet_no_adversary)
# GPU     which one                            (default: 0)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
database="${DB:-$root/data/musicnet}"

if [[ ! -f "$database/metadata.yaml" ]]; then
    echo "error: no database in $database: run bash scripts/rave_preprocess.sh, or set DB" >&2
    exit 1
fi

CUDA_VISIBLE_DEVICES="${GPU:-0}" rave_tools train \
    --config "${CONFIG:-rave_v2_musicnet_no_adversary}" \
    --db_path "$database" \
    --out_path "${OUT:-$root/runs}" \
    --name "${NAME:-musicnet}" \
    --batch 8 --n_signal 131072 --val_every 10000 --save_every 100000 \
    "$@"
