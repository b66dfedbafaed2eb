#!/usr/bin/env bash
# Check and time this project on one GPU, in eight minutes at most. In the project's root:
#
#     bash benchmarks/gpu_run.sh                  # all steps; the table comes last
#     bash benchmarks/gpu_run.sh tests bench      # some of them
#     LIMIT=300 bash benchmarks/gpu_run.sh        # other seconds for all of it
#
# On a machine without a network, gpu_prepare.sh comes first, in a clone with one. The packages are installed from
# the .whl/ that it leaves, and are taken as they are where there is none.
#
# Steps: versions, parts (the update part by part, rates of the card), tests (what the tests ask of CUDA), bench
# (benchmarks/gpu.py, eager and graph), loop (training on PointCircle), compile (benchmarks/gpu.py, torch.compile),
# simulator (training on Safety-Gymnasium). Each has its own limit, and what fails does not stop the rest. Results
# are written to $OUT (./gpu-out): summary.txt, log.txt, parts.json, profile.txt, bench.json, loop.csv, simulator.csv.
# Without CUDA everything is small, and only shows that it runs.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$PWD
OUT=${OUT:-$root/gpu-out}
site=${SITE:-${HOME:-.}/.cache/gpu-check-site}
mkdir -p "$OUT" "$site"
OUT=$(cd "$OUT" && pwd)
LIMIT=${LIMIT:-480}
python=${PYTHON:-python3}
work=$(mktemp -d)
steps=${*:-versions parts tests bench loop compile simulator}
[ -f recipes/cvpo.py ] || { echo "error: $root is not the project's root" >&2; exit 1; }

export PYTHONPATH=$site:$root:$root/benchmarks:$root/recipes
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RL_WARNINGS=False MPLBACKEND=Agg
export MUJOCO_GL=disable  # nothing is drawn, so no display library is asked for
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
log=$OUT/log.txt
rm -f "$OUT"/{summary.txt,parts.json,profile.txt,bench.json,loop.csv,loop_eager.csv,simulator.csv}
: >"$log"
: >"$OUT/steps.tsv"

# step NAME SECONDS COMMAND...: run it within its seconds and within what is left; interrupted, it may finish up.
step() {
    local name=$1 most=$2 began=$SECONDS left=$((LIMIT - SECONDS)) code
    shift 2
    if ((left < 20)); then
        printf '%s\tno time left\t0\n' "$name" >>"$OUT/steps.tsv"
        return 1
    fi
    ((most > left)) && most=$left
    printf '\n===== %s (%s s at most, %s s left)\n' "$name" "$most" "$left" | tee -a "$log"
    timeout --signal=INT --kill-after=12 "$most" "$@" >"$work/now" 2>&1
    code=$?
    cat "$work/now" >>"$log"
    tail -n "${TAIL:-12}" "$work/now" | cut -c1-300
    printf '%s\t%s\t%s\n' "$name" "$code" $((SECONDS - began)) >>"$OUT/steps.tsv"
    return $code
}

wanted() { [[ " $steps " == *" $1 "* ]]; }

if [ ! -f "$site/.whole" ] && ls "$root"/.whl/*.whl >/dev/null 2>&1; then
    step install 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
        --disable-pip-version-check --upgrade --target "$site" "$root"/.whl/*.whl && touch "$site/.whole"
fi
device=$("$python" -c 'import torch; print("cuda" if torch.cuda.is_available() else "cpu")' 2>>"$log")
device=${device:-cpu}

if [ "$device" = cuda ]; then
    tests="cuda or kernel or graph or never_waits or does_not_wait or another_device_keeps or lives_with_the_learner"
    sizes=(--blocks 6 --updates 20)
    updates=(--executions eager graph)
    loop=(--env.num-envs 1024 --total-frames 4000000 --checkpoint-interval 4000000 --log-interval 100000
        --collect.frames-per-batch 16384 --collect.updates-per-frame 0.002 --collect.warmup-frames 50000
        --replay.size 2000000 --replay.window 300000 --execution.mode graph)
    simulator=(--env.num-envs 16 --collect.workers 16 --total-frames 2000000 --execution.mode graph
        --collect.frames-per-batch 3200 --collect.updates-per-frame 0.03)
else
    tests="cpu and (fixed_mode or batch_of_problems) or runs_on_the_cpu or starts_are_counted"
    sizes=(--states 8 --particles 4 --m-iterations 2 --hidden-sizes 16 16 --observation 6 --transitions 500
        --blocks 2 --updates 1)
    updates=(--executions eager)
    loop=(--env.num-envs 64 --total-frames 40000 --log-interval 5000 --collect.frames-per-batch 1600
        --collect.updates-per-frame 0.01 --execution.mode eager)
    simulator=(--env.num-envs 2 --collect.workers 2 --total-frames 6000 --collect.warmup-frames 2000
        --critics.warmup-updates 10 --collect.updates-per-frame 0.005)
fi

cat >"$work/versions.py" <<'PYTHON'
import importlib.metadata as meta
import os
import platform

import torch

print(f"Python {platform.python_version()}, {os.cpu_count()} cores, CUDA {torch.version.cuda}")
if torch.cuda.is_available():
    chip = torch.cuda.get_device_properties(0)
    print(f"{chip.name}: {chip.multi_processor_count} multiprocessors, {chip.total_memory / 2**30:.0f} GiB")
names = "torch triton numpy scipy tensordict torchrl gymnasium mujoco safety-gymnasium tyro pytest pytest-xdist"
for name in names.split():
    try:
        print(name, meta.version(name))
    except meta.PackageNotFoundError:
        print(name, "is missing")
import cvpo  # noqa: E402, F401

print("recipes/cvpo.py imports")
try:
    import torchrl._torchrl  # noqa: F401

    print("torchrl's extension loads")
except ImportError:
    print("torchrl's extension does not load: prioritized buffers would need it, nothing here does")
PYTHON

# Warnings of these versions are shown at the end of the tests; they do not fail one.
spread=()
[ "$device" = cuda ] && "$python" -c 'import xdist' 2>>"$log" && spread=(-n 6)
where=(tests/laws tests/estep tests/mstep tests/critics tests/ops tests/policies tests/lagrangian
    tests/envs/test_point_circle.py tests/envs/test_make_env.py tests/benchmarks/test_gpu.py
    tests/training/test_device_memory.py tests/training/test_graph.py tests/training/test_replay.py
    tests/recipes/test_execution.py tests/recipes/test_population.py tests/recipes/test_cvpo.py
    tests/recipes/test_evaluate.py tests/recipes/test_lagrangian_recipes.py tests/recipes/test_ppo_lag.py)

# train NAME SECONDS FLAGS...: one run of the recipe; its rows survive an interruption.
train() {
    local name=$1 most=$2 code
    shift 2
    step "$name" "$most" "$python" -W ignore recipes/cvpo.py "$@" --device "$device" --no-progress --loggers \
        --eval-interval 0 --run-dir "$work/$name"
    code=$?
    cp "$work/$name/metrics.csv" "$OUT/$name.csv" 2>/dev/null
    return $code
}

if wanted versions; then
    [ "$device" = cuda ] && step card 20 nvidia-smi \
        --query-gpu=name,memory.total,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv
    TAIL=30 step versions 60 "$python" -W ignore "$work/versions.py"
fi
wanted parts && step parts 110 "$python" -W ignore "$here/gpu_parts.py" --json "$OUT/parts.json" \
    --profile "$OUT/profile.txt"
wanted tests && TAIL=40 step tests 120 "$python" -m pytest -p no:cacheprovider -q --durations=8 \
    -o filterwarnings=default "${spread[@]}" -k "$tests" "${where[@]}"
wanted bench && step bench 110 "$python" -W ignore benchmarks/gpu.py --device "$device" "${sizes[@]}" --rows 1 2 \
    "${updates[@]}" --no-loop --json "$OUT/bench.json"
if wanted loop; then
    train loop 100 --env.id PointCircle "${loop[@]}"
    [ "$device" = cuda ] && [ "$(wc -l <"$OUT/loop.csv" 2>/dev/null || echo 0)" -lt 3 ] &&
        train loop_eager 60 --env.id PointCircle "${loop[@]}" --execution.mode eager
fi
wanted compile && [ "$device" = cuda ] && step compile 150 "$python" -W ignore benchmarks/gpu.py "${sizes[@]}" \
    --rows 2 --executions compile --no-loop
wanted simulator && "$python" -c 'import safety_gymnasium' 2>>"$log" &&
    train simulator 45 --env.id SafetyPointGoal1-v0 "${simulator[@]}"

"$python" "$here/gpu_parts.py" --summary "$OUT" | tee "$OUT/summary.txt"
rm -rf "$work" "$OUT/steps.tsv"
