#!/usr/bin/env bash
# Everything for an NVIDIA GPU in under nine minutes: the tests marked `cuda` (layers that wait in main memory among them;
# those for two GPUs where there are two), then benchmarks/cuda.py.
#
#   benchmarks/gpu.sh [WHEELS]
#
# For a machine that has torch and transformers already and reaches no package registry: WHEELS is a folder of wheels
# (default: wheels), which `benchmarks/gpu.sh --wheels` fills where there is a registry. Logs go to $OUT where it is set.
set -euo pipefail
cd "$(dirname "$0")/.."
small=(grpcio grpcio-health-checking grpcio-reflection protobuf fastapi uvicorn starlette orjson prometheus_client
  sentencepiece ml_dtypes gguf pytest pytest-timeout pytest-xdist hypothesis httpx psutil cryptography
  accelerate pyyaml)
if [ "${1:-}" = --wheels ]; then
  python3 -m pip download --quiet --only-binary :all: --python-version "${GPU_PYTHON:-3.12}" \
    --dest wheels --no-deps "${small[@]}" execnet iniconfig pluggy sortedcontainers googleapis-common-protos \
    annotated-doc typing-inspection pydantic pydantic-core annotated-types anyio sniffio h11 httpcore certifi idna \
    click cffi pycparser platformdirs filelock typing-extensions packaging pygments tqdm rich markdown-it-py mdurl attrs
  du -sh wheels
  exit
fi
wheels=${1:-wheels}
out=${OUT:-build/gpu}
mkdir -p "$out"
python3 -c 'import torch; assert torch.cuda.is_available(), "no GPU is to be seen"; print(torch.__version__, torch.cuda.get_device_name())'
python3 -m venv --system-site-packages build/gpu-venv
python=$PWD/build/gpu-venv/bin/python
# What the machine has in a version that will do stays as it is.
"$python" -m pip install --quiet --no-index --find-links "$wheels" "${small[@]}"
mkdir -p build/link && ln -sfn ../.. build/link/probewire
export PYTHONPATH=$PWD/build/link PYTHONUNBUFFERED=1
failed=0
timeout 240 "$python" -m pytest -m cuda -q -n0 tests/backends/torch/test_cuda.py 2>&1 | tee "$out/tests.log" || failed=1
timeout 240 "$python" benchmarks/cuda.py --rounds 3 2>&1 | tee "$out/cuda.log" || failed=1
exit $failed
