# shellcheck shell=bash
# Packages of another Debian suite or of arm64, fetched through apt states of their own: nothing of the
# machine's apt is used but its mirrors, nothing of it is changed, and no root is needed.

DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
LAB_SUITE=trixie # where Xen 4.20, Linux 6.12 and the arm64 programs come from

# debian_mirror LABEL: the address that this machine uses for archive "Debian" or "Debian-Security".
debian_mirror() {
  local uri
  uri=$(mirror_of "$1")
  if [ -z "$uri" ]; then # never updated, or the lists were cleaned away: labels come with them
    apt_root update || true
    uri=$(mirror_of "$1")
  fi
  [ -n "$uri" ] || die "the apt sources of this machine name no archive of label '$1' (see apt-get indextargets)"
  echo "$uri"
}
mirror_of() {
  # shellcheck disable=SC2016 # apt's own variables
  apt-get indextargets --format '$(LABEL) $(REPO_URI)' 'Created-By: Packages' |
    awk -v label="$1" '$1 == label { print $2; exit }'
}

# apt_state NAME ARCHITECTURES SOURCE…: makes or refreshes state NAME for the architectures ("amd64 arm64"; the
# first is the one meant where a package's name has none). A source is a line of sources.list without
# its options: "deb URI SUITE main".
apt_state() {
  local name=$1 architectures=$2 dir=$LAB_CACHE/apt/$1 source
  shift 2
  mkdir -p "$dir"/lists/partial "$dir"/cache/archives/partial "$dir"/empty
  : >"$dir/status"
  for source; do
    echo "${source%% *} [arch=${architectures// /,} signed-by=$DEBIAN_KEYRING] ${source#* }"
  done >"$dir/sources.list"
  cat >"$dir/apt.conf" <<X
Dir::State "$dir"; Dir::State::Lists "$dir/lists"; Dir::State::status "$dir/status";
Dir::Cache "$dir/cache"; Dir::Etc::SourceList "$dir/sources.list"; Dir::Etc::SourceParts "$dir/empty";
Dir::Etc::Preferences "/dev/null"; Dir::Etc::PreferencesParts "$dir/empty";
#clear APT::Architectures;
APT::Architecture "${architectures%% *}"; APT::Architectures { "${architectures// /\"; \"}"; };
APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "3"; Dpkg::Use-Pty "false";
X
  apt_in "$name" apt-get -qq update && return
  # An image older than the suite lacks its key; the package of this very release has been given it since.
  apt_root update && apt_root install -y debian-archive-keyring && apt_in "$name" apt-get -qq update
}

apt_in() { # apt_in STATE COMMAND…
  local state=$1
  shift
  APT_CONFIG=$LAB_CACHE/apt/$state/apt.conf "$@"
}

# fetch_packages STATE DIRECTORY PACKAGE…: downloads (apt checks the hashes) and unpacks into DIRECTORY.
fetch_packages() {
  local state=$1 directory=$2 debs file
  shift 2
  debs=$(mktemp -d ./debs.XXXXXX)
  (cd "$debs" && apt_in "$state" apt-get -qq download "$@")
  mkdir -p "$directory"
  for file in "$debs"/*.deb; do
    basename "$file"
    dpkg-deb -x "$file" "$directory"
  done
  rm -rf "$debs"
}
