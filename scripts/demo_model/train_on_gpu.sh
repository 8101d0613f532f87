#!/bin/sh
# Trains every part on one GPU, each for a bounded time, then draws sheets and figures. What has ended is not done again; a run that was cut
# off goes on when the script is started anew.
# usage: train_on_gpu.sh WORK MERGES KOALA OUT [UNET_MINUTES [LORA_MINUTES]]
#   WORK    has data.npz and things.json of prepare_data.py; text.pt, vae.pt, unet.pt go on where they are
#   KOALA   picture of the new thing of the textual inversion
#   OUT     folder for the figures
# NORM=--no-compile leaves group norms uncompiled, which starts sooner.
set -u
work=$1 merges=$2 koala=$3 out=$4 minutes=${5:-9} style=${6:-1.5}
here=$(dirname "$0")
export PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$work/inductor}"
gpu="--device cuda"
stage() { # NAME COMMAND...: once, with its own log
    name=$1
    shift
    [ -e "$work/$name.done" ] && return 0
    echo "$(date +%T) $name" && "$@" >>"$work/$name.log" 2>&1 && touch "$work/$name.done" || echo "$name failed: $work/$name.log"
}
mkdir -p "$out"
stage vae python3 "$here/train_vae.py" "$work" $gpu --minutes "${VAE_MINUTES:-4}" --batch 64 --every 500 &
stage text python3 "$here/train_text.py" "$work" "$merges" $gpu --minutes "${TEXT_MINUTES:-0.7}" --batch 512 --lr 0.002 --pool 80000 --processes 14 --every 200
stage embedding python3 "$here/train_embedding.py" "$work" "$merges" "$koala" "$work/koala.safetensors" $gpu --steps 1500 &
stage unet python3 "$here/train_unet.py" "$work" "$merges" --level 0 $gpu --total "$minutes" --minutes "$minutes" --batch 96 \
    --lr 0.002 --hold 0.45 --least 0.01 --ema 0.998 --align 0.05 --weighted 0.6 --coloured 0.25 --boost 1 --boosted 0.35 --mottle 0.3 --mottled 0.4 \
    --pool 40000 --processes 14 --every 200 ${NORM:-}
stage lora python3 "$here/train_lora.py" "$work" "$merges" "$work/blocky.safetensors" $gpu --minutes "$style" --batch 32 --pool 8000 --processes 8 &
stage figures python3 "$here/sample_work.py" "$work" "$merges" "$out" $gpu
wait
echo "$(date +%T) ended"
