#!/usr/bin/env bash
# A 64-bit Arm Debian with the wheel and its engines in it, under qemu-user; what was built is kept in build/arm64.
#   tests/arm64/build.sh          prepare, then run tests/arm64/inside.py there and compare its answers with this machine's
# Needs root (chroot, binfmt_misc) and apt. Timings under qemu mean nothing; behaviour does.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=build/arm64 root=$PWD/build/arm64/root python=${PYTHON:-.venv/bin/python}
platforms=(--platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux_2_24_aarch64
  --platform manylinux_2_26_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64
  --platform manylinux_2_31_aarch64 --platform manylinux_2_34_aarch64)
say() { echo "arm64: $*" >&2; }
fail() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || fail "needs root for chroot and binfmt_misc: run it as root"
mkdir -p "$here/wheels"

for tool in debootstrap qemu-aarch64-static; do
  command -v $tool >/dev/null || { say "installing qemu-user-static and debootstrap"; apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends qemu-user-static debootstrap >/dev/null; break; }
done
[ -e /proc/sys/fs/binfmt_misc/register ] || mount -t binfmt_misc none /proc/sys/fs/binfmt_misc \
  || fail "binfmt_misc cannot be mounted here: this container may not run foreign programs"
[ -e /proc/sys/fs/binfmt_misc/qemu-aarch64 ] || cat /usr/lib/binfmt.d/qemu-aarch64.conf > /proc/sys/fs/binfmt_misc/register

if [ ! -e "$here/.root-made" ]; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' | head -n 1)
  say "making a Debian bookworm root file system (some 2 minutes, 300 MB)"
  rm -rf "$root"
  debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" "${mirror:?apt knows no bookworm mirror}" \
    > "$here/debootstrap.log" 2>&1 || { tail -n 5 "$here/debootstrap.log" >&2; fail "debootstrap failed"; }
  touch "$here/.root-made"
fi
[ "$(chroot "$root" uname -m)" = aarch64 ] || fail "the root file system does not run as aarch64"

say "building the wheel"
rm -rf "$here/dist"
$python -m pip -q wheel --no-deps --no-build-isolation -w "$here/dist" . >/dev/null
wheel=$(ls "$here"/dist/*.whl)
wanted=$($python tests/arm64/requirements.py)
stamp=$(printf '%s' "$wanted" | sha256sum | cut -c1-16)
if [ "$(cat "$here/.wheels-for" 2>/dev/null)" != "$stamp" ]; then
  say "fetching aarch64 wheels"
  $python -m pip -qq download -d "$here/wheels" --only-binary=:all: --python-version 311 --implementation cp --abi cp311 --abi abi3 \
    --abi none "${platforms[@]}" $wanted
  rm -rf "$root/opt/kasmina"; chroot "$root" python3 -m venv /opt/kasmina
  mkdir -p "$root/wheels"; cp -u "$here"/wheels/* "$root/wheels/"
  say "installing them (under qemu, some 2 minutes)"
  chroot "$root" /opt/kasmina/bin/pip -q --isolated install --no-index --find-links /wheels $wanted
  echo "$stamp" > "$here/.wheels-for"
fi
rm -f "$root"/wheels/kasmina-*.whl; cp "$wheel" "$root/wheels/"
chroot "$root" /opt/kasmina/bin/pip -q --isolated install --no-index --no-deps --force-reinstall "/wheels/$(basename "$wheel")"

rm -rf "$root/kasmina"; mkdir -p "$root/kasmina"; cp -r tests pyproject.toml "$root/kasmina/"
mountpoint -q "$root/proc" || mount -t proc none "$root/proc"
# no /sys: it describes this machine's processor, and ONNX Runtime's Arm code ends in a segmentation fault over it
mountpoint -q "$root/dev" || mount --bind /dev "$root/dev"
trap 'umount "$root/proc" "$root/dev" 2>/dev/null || true' EXIT

say "exporting a bundle on this machine"
bundle=$($python -c 'from benchmarks import _models; print(_models.bundle_path("digits"))')
cp "$bundle" "$root/kasmina/exported.kasmina"
say "asking this machine first"
$python tests/arm64/inside.py --bundle "$bundle" --out "$here/here.json" --work "$here/here-data"
say "asking the Arm machine"
chroot "$root" /bin/sh -c 'cd /kasmina && OMP_NUM_THREADS=1 /opt/kasmina/bin/python tests/arm64/inside.py --bundle /kasmina/exported.kasmina --out /kasmina/there.json --work /kasmina/data --suite'
$python tests/arm64/compare.py "$here/here.json" "$root/kasmina/there.json"
