#!/bin/sh
# Fetch the pinned sd-scripts into third_party/sd-scripts. Where it can't be reached this says what works without it,
# and succeeds: the miniature and an sd-scripts that you already have need no download.
cd "$(dirname "$0")/.." || exit 1
target=third_party/sd-scripts
url=$(git config --file .gitmodules submodule.third_party/sd-scripts.url)
commit=$(sed -n 's/^COMMIT = "\(.*\)"/\1/p' spyke_kohya/engine/release.py)
release=$(sed -n 's/^RELEASE = "\(.*\)"/\1/p' spyke_kohya/engine/release.py)
export GIT_TERMINAL_PROMPT=0 GIT_HTTP_LOW_SPEED_LIMIT=1000 GIT_HTTP_LOW_SPEED_TIME=20

if [ -f "$target/train_network.py" ]; then
  echo "sd-scripts $release is in $target"
  exit 0
fi
if git rev-parse --git-dir >/dev/null 2>&1; then
  git submodule --quiet update --init --depth 1 "$target" >/dev/null 2>&1
else # an unpacked archive has no submodules
  git clone --quiet --depth 1 --branch "$release" "$url" "$target" >/dev/null 2>&1
fi
if [ -f "$target/train_network.py" ]; then
  echo "fetched sd-scripts $release into $target"
  exit 0
fi
cat <<MESSAGE
sd-scripts could not be fetched from $url.
  What works now:  make train PRESET=demo (on the miniature), validate, plan, rank.
  To train on the real engine, do one of these:
    - make engine                             again, where that address can be reached
    - export SPYKE_ENGINE=/path/to/sd-scripts an existing checkout or kohya_ss/sd-scripts
                                              (release $release, commit $commit)
      export SPYKE_ENGINE_PYTHON=/path/to/its/venv/bin/python    if it has a Python of its own
MESSAGE
