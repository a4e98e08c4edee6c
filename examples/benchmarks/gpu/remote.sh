#!/usr/bin/env bash
# Run in the root of the repository: remote.sh first|second SECONDS [options of remote.py]
# Keeps data and project under $GPU_WORK (default: a folder gpu of the temporary directory), where both parts find them.
set -u
half=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
kit=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
which=$1 seconds=$2
shift 2
work=${GPU_WORK:-${TMPDIR:-/tmp}/gpu} out=${OUT:-gpu-out}
mkdir -p "$work/packed" "$work/project" "$out"
work=$(cd "$work" && pwd) out=$(cd "$out" && pwd)
[ -d "$half/packed" ] && cp -u "$half"/packed/* "$work/packed/"
[ -d "$half/extra" ] && mkdir -p "$work/extra" && cp -r "$half"/extra/. "$work/extra/"
source=$half/project
[ -d "$source" ] || source=$PWD
for part in src tests examples pyproject.toml README.md CHANGELOG.md; do
  [ -e "$source/$part" ] && rm -rf "$work/project/$part" && cp -r "$source/$part" "$work/project/$part"
done
cd "$work/project" || exit 2
[ -d src/cifarnet ] || { echo "no project: it is neither here nor in $half/project"; exit 2; }
export PYTHONPATH=$PWD/src PYTHONUNBUFFERED=1 TORCHINDUCTOR_CACHE_DIR=$work/inductor MPLCONFIGDIR=$work/matplotlib
exec "${GPU_PYTHON:-python3}" "$kit/remote.py" "$which" --seconds "$seconds" --work "$work" --out "$out" "$@"
