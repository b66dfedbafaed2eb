#!/usr/bin/env bash
# Put into .whl/ what a GPU machine without a network needs to check this project: the Python packages that it
# lacks beside its own PyTorch, and the scripts that use them. Run in a clone, where pip works:
#
#     bash benchmarks/gpu_prepare.sh        # about 38 MB; --no-simulators leaves Safety-Gymnasium's 27 MB out
#
# Then, with .whl/ carried along, in the project's root on the GPU machine: bash .whl/gpu_run.sh
# There: Python 3.12, x86-64, torch 2.11 for CUDA 13, numpy 2.x, scipy, matplotlib, PyYAML, tqdm, tensorboard, pytest.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$(git rev-parse --show-toplevel)"
python=${PYTHON:-python3}

exclude=$(git rev-parse --git-path info/exclude)
mkdir -p "$(dirname "$exclude")"
for line in /.whl/ /gpu-out/; do
    grep -qxF "$line" "$exclude" 2>/dev/null || echo "$line" >>"$exclude"
done

packages=(
    tensordict==0.14.3 orjson "importlib_metadata<9" "pyvers>=0.2.3,<0.3"  # importlib_metadata 9 wants one more
    torchrl==0.14.1 "hoptorch>=0.1.4"
    gymnasium==1.4.0 farama-notifications
    tyro==1.0.17 docstring-parser typeguard
    mujoco==3.4.0 xmltodict==1.0.4  # imported by make_env whatever the environment
)
[ "${1:-}" = --no-simulators ] || packages+=(safety-gymnasium==1.0.0 glfw)

platforms=()
for name in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${name}_x86_64")
done
rm -rf .whl
mkdir .whl
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --dest .whl "${packages[@]}"
cp "$here"/gpu_run.sh "$here"/gpu_parts.py .whl/

wanted=${#packages[@]}
found=$(ls .whl/*.whl | wc -l)
[ "$found" = "$wanted" ] || { echo "error: $found wheels for $wanted packages in .whl/" >&2; exit 1; }
ls -l .whl | awk 'NR > 1 { printf "%10.2f MB  %s\n", $5 / 1e6, $9 }'
echo "$found wheels, $(du -sb .whl | awk '{ printf "%.1f MB", $1 / 1e6 }') in .whl/"
