#!/usr/bin/env bash
# Networks of several kinds on the sample set: trained shortly, exported, quantized, and set side by side. To be run in
# the folder of this file, beside which kinds.toml stands; the network of one's own is examples/own_model.py.
set -euo pipefail

compress data sample coast
make() {
  local name=$1
  shift
  compress train --data coast --recipe kinds.toml --out "$name" "$@"
  compress export "$name" --data coast --name "$name-fp32" --out "$name-fp32"
  compress quantize "$name" --data coast --recipe kinds.toml --out "$name-int8"
}
make unet --set model.base=16
make unetpp --set model.factory=unetpp --set model.base=16
make transposed --set model.base=16 --set model.upsampling=transposed
make squeeze --set model.base=16 --set model.squeeze_excite=true
make own --model ../../../examples/own_model.py:LinkNet --set model.arguments.width=16
compress bench latency {unet,unetpp,transposed,squeeze,own}-{fp32,int8} --data coast --out kinds
# Last, because its proof of parity may fail, and did: 0.13 % of the pixels, 0.1 % may differ.
make lite0 --set model.factory=encoder-unet --set model.encoder=efficientnet-lite0
