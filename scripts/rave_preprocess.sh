#!/usr/bin/env bash
# MusicNet -> a database of 44.1 kHz mono sound.
#
#   bash scripts/rave_preprocess.sh [further flags of rave_tools preprocess]
#
# INPUT   folders of sound files, separated by colons  (default: MusicNet as scripts/download_musicnet.py leaves it)
# OUTPUT  folder of the database                       (default: data/musicnet beside this checkout's scripts/)
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
input="${INPUT:-$root/musicnet/musicnet/train_data:$root/musicnet/musicnet/test_data}"
output="${OUTPUT:-$root/data/musicnet}"

inputs=()
IFS=: read -r -a folders <<< "$input"
for folder in "${folders[@]}"; do
    if [[ ! -d "$folder" ]]; then
        echo "error: no folder $folder: run python scripts/download_musicnet.py, or set INPUT" >&2
        exit 1
    fi
    inputs+=(--input_path "$folder")
done

rave_tools preprocess "${inputs[@]}" --output_path "$output" --channels 1 --sampling_rate 44100 --num_signal 131072 "$@"
cat "$output/metadata.yaml"
