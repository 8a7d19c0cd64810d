#!/usr/bin/env bash
# Builds the image of serve/deploy/Dockerfile where no registry is reached and no daemon runs: buildah instead of docker,
# and a base that debootstrap makes from the Debian mirror that this machine already uses.
#
#     serve/deploy/container.sh [FOLDER]      FOLDER keeps images and wheels; default build/container
#
# Needs root, buildah and debootstrap. Ends with status 69 when these, the mirror or the package index are not to be had.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/../.."

readonly EXTRAS=serve,grpc,otel
readonly UNAVAILABLE=69 # EX_UNAVAILABLE of sysexits.h
folder=$(realpath -m "${1:-build/container}")
python=${PYTHON:-python3}

say() { echo "container: $*" >&2; }
unavailable() {
  say "$*"
  exit $UNAVAILABLE
}

((EUID == 0)) || unavailable "needs root; run it as root"
for tool in buildah debootstrap; do
  command -v $tool > /dev/null || unavailable "$tool is missing; run: apt-get install buildah debootstrap"
done

mkdir -p "$folder/wheels"
exec 9> "$folder/lock" # one build at a time in a folder
flock 9
export BUILDAH_ISOLATION=chroot
buildah() { command buildah --root "$folder/storage" --runroot "$folder/run" "$@"; }

# Debian's own archive, as apt on this machine is told to find it.
mirror() {
  local codename
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(CODENAME) $(REPO_URI)' 'Created-By: Packages' |
    awk -v codename="$codename" '$1 == "Debian" && $2 == "main" && $3 == codename { print $3, $4; exit }'
}

make_base() {
  local codename uri container root
  read -r codename uri < <(mirror) || unavailable "apt names no Debian archive; run: apt-get update"
  say "making the base: Debian $codename"
  container=$(buildah from scratch)
  root=$(buildah mount "$container")
  debootstrap --variant=minbase --include=python3,python3-venv "$codename" "$root" "$uri" > "$folder/debootstrap.log" ||
    { buildah rm "$container" > /dev/null; unavailable "debootstrap failed; see $folder/debootstrap.log"; }
  # As slim images do it; and no word of where it came from.
  rm -rf "$root"/{var/cache/apt/*,var/lib/apt/lists/*,var/log/*,etc/apt/sources.list,debootstrap}
  rm -rf "$root"/usr/share/{doc,info,man}/* "$root"/usr/share/locale/*
  buildah commit --rm --quiet "$container" segpress-base > /dev/null
}

buildah inspect --type image segpress-base > /dev/null 2>&1 || make_base

# This machine's pip fetches, by whatever configuration and password it has; the build sees only a folder of wheels.
pins=$(cat pyproject.toml constraints.txt "$0" | sha256sum)
if [[ $(cat "$folder/wheels/.pins" 2> /dev/null) != "$pins" ]]; then
  container=$(buildah from segpress-base)
  version=$(buildah run "$container" python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  buildah rm "$container" > /dev/null
  say "fetching wheels for Python $version"
  rm -f "$folder"/wheels/*
  "$python" -m pip download -qq --only-binary=:all: --python-version "$version" \
    -c constraints.txt -d "$folder/wheels" ".[$EXTRAS]" setuptools ||
    unavailable "pip cannot fetch what the image needs; see above"
  echo "$pins" > "$folder/wheels/.pins"
fi
printf '[global]\nno-index = true\nfind-links = /wheels\n' > "$folder/pip.conf"

# HEALTHCHECK is known to Docker's format only.
buildah build --quiet --layers --format docker --file serve/deploy/Dockerfile --tag segpress \
  --build-arg BASE=localhost/segpress-base --build-arg EXTRAS=$EXTRAS \
  --secret "id=pip.conf,src=$folder/pip.conf" --volume "$folder/wheels:/wheels:ro" . > /dev/null
size() { buildah images --format '{{.Size}}' "$1"; }
say "segpress: $(size segpress), of which the base is $(size segpress-base)"
