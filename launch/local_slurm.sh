#!/usr/bin/env bash
# A SLURM of one machine, to try out what a cluster would do: `bash launch/local_slurm.sh up`. For Debian and its kin, as root
# or in a container (as anyone, once the packages are there). No systemd, no cgroups, no database, loopback only.
#
#   up             installs the packages if they are missing, starts the daemons, waits for the node; again while up: no change
#   env            what a shell needs to reach it: eval "$(bash launch/local_slurm.sh env)"
#   status         daemons, node and queue
#   run COMMAND    COMMAND with a cluster of its own, gone afterwards; or with the one in FLEXO_SLURM, which stays if it was up
#   down           cancels the jobs and stops these daemons and no others; --purge removes the folder too
#
# Everything it makes is in one folder. Two partitions: jobs on `urgent` preempt those on `main`, with SIGTERM and 20 seconds of
# grace and no other warning, as plain clusters do.
#
#   FLEXO_SLURM       the folder (flexo-local-slurm in the temporary folder); a short, plain path: unix sockets lie below it
#   FLEXO_SLURM_CPUS  CPUs that the node claims, more than there are if you like (all there are)
#
# Exit codes: 0 done; 1 it should have worked and did not; 2 wrong usage; 77 it cannot work on this machine, and says why.
set -euo pipefail
purge=
if [ "${1:-}" = run ] && [ -z "${FLEXO_SLURM:-}" ]; then FLEXO_SLURM=$(mktemp -d /tmp/slurm-XXXXXX) purge=--purge; fi
FLEXO_SLURM=${FLEXO_SLURM:-${TMPDIR:-/tmp}/flexo-local-slurm}
PATH=$PATH:/usr/sbin:/sbin
conf=$FLEXO_SLURM/slurm.conf
host=$(hostname -s)
export SLURM_CONF=$conf
declare -A package=([munged]=munge [slurmctld]=slurmctld [slurmd]=slurmd [sbatch]=slurm-client)

cannot() { echo "no SLURM here: $*" >&2; exit 77; }
broken() {
  echo "SLURM did not start: $*" >&2
  tail -n 5 "$FLEXO_SLURM"/log/*.log >&2 2> /dev/null || true
  down || true
  exit 1
}

# The process of a pid file, if it still is that program, working for this folder: a number can have been given anew.
daemon() {
  local pid
  pid=$(cat "$FLEXO_SLURM/run/$1.pid" 2>/dev/null) && [[ $(cat "/proc/$pid/comm" 2>/dev/null) == "$1" ]] &&
    tr '\0' ' ' < "/proc/$pid/cmdline" 2>/dev/null | grep -qF "$FLEXO_SLURM/" && echo "$pid"
}

within() { # SECONDS COMMAND...
  local end=$((SECONDS + $1)) && shift
  until "$@" > /dev/null 2>&1; do ((SECONDS < end)) || return 1; sleep 0.1; done
}

missing() { # the packages, with a space between them
  local program names=
  for program in "${!package[@]}"; do command -v "$program" > /dev/null || names+=" ${package[$program]}"; done
  echo "${names# }"
}

install_packages() {
  local needed log=$FLEXO_SLURM/log/apt.log
  needed=$(missing)
  [ -n "$needed" ] || return 0
  command -v apt-get > /dev/null || cannot "$needed missing, and no apt-get to install it with"
  [ "$(id -u)" = 0 ] || cannot "$needed missing, and installing takes root"
  echo "installing $needed" >&2
  (
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then # keeps the packages from starting daemons of their own
      trap 'rm -f $policy' EXIT
      printf '#!/bin/sh\nexit 101\n' > $policy && chmod +x $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2206 # a list of packages
    get=(apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends $needed)
    "${get[@]}" || { apt-get -q update && "${get[@]}"; }
  ) > "$log" 2>&1 || cannot "apt-get did not install $needed: $(grep -m 1 '^E:' "$log" || echo "see $log")"
  [ -z "$(missing)" ] || cannot "$(missing) still missing after the installation"
}

address() { # of this machine under its own name, which is where the daemons listen
  local found
  found=$(getent ahostsv4 "$host" | awk 'NR == 1 {print $1}') || true
  [ -n "$found" ] || cannot "the name of this machine, $host, has no address; a line '127.0.0.1 $host' in /etc/hosts helps"
  [[ $found == 127.* ]] || hostname -I | grep -qwF "$found" ||
    cannot "the name of this machine, $host, leads to $found, which is another one; /etc/hosts can put it right"
  echo "$found"
}

# A few settings that are not obvious:
#   cred_expire      is also how long a requeued job waits until it may start again
#   MinJobAge        is how long a job that ended can be asked about
#   EnforcePartLimits refuses what could never run, instead of letting it wait for ever
#   CR_Core          leaves memory uncounted, or a job that does not ask for any would take all of it
write_conf() { # ADDRESS PORT CPUS
  local memory
  memory=$(awk '/^MemTotal:/ {print int($2 / 1024)}' /proc/meminfo)
  cat > "$conf.new" << END
ClusterName=flexo
SlurmctldHost=$host($1)
SlurmctldPort=$2
SlurmdPort=$(($2 + 1))
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$FLEXO_SLURM/run/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$FLEXO_SLURM/state
SlurmdSpoolDir=$FLEXO_SLURM/spool
SlurmctldPidFile=$FLEXO_SLURM/run/slurmctld.pid
SlurmdPidFile=$FLEXO_SLURM/run/slurmd.pid
SlurmctldLogFile=$FLEXO_SLURM/log/slurmctld.log
SlurmdLogFile=$FLEXO_SLURM/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
PropagateResourceLimits=NONE
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=10
MinJobAge=3600
EnforcePartLimits=ALL
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=$1 CPUs=$3 Sockets=1 CoresPerSocket=$3 ThreadsPerCore=1 RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE DefaultTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=$host MaxTime=INFINITE DefaultTime=60 PriorityTier=2 PreemptMode=OFF
END
  # slurmd looks for cgroups even where nothing uses them; this version of the plugin does not mind that there are none
  echo CgroupPlugin=cgroup/v1 > "$FLEXO_SLURM/cgroup.conf"
  mv "$conf.new" "$conf"
}

free_port() { # of this ADDRESS, it and the next one; the folder says where to look first, for there can be several clusters
  local port tries
  port=$((20000 + $(cksum <<< "$FLEXO_SLURM" | cut -d ' ' -f 1) % 5000 * 2))
  for tries in {1..50}; do
    (: < "/dev/tcp/$1/$port" || : < "/dev/tcp/$1/$((port + 1))") 2> /dev/null || { echo $port; return; }
    port=$((port + 2))
  done
  cannot "no free port in $tries pairs below $port"
}

node_is_ready() { [[ $(sinfo -h -N -n "$host" -p main -o %T) =~ ^(idle|mixed|allocated|completing)$ ]]; }

up() {
  [[ $FLEXO_SLURM =~ ^/[A-Za-z0-9_./-]+$ ]] || cannot "FLEXO_SLURM=$FLEXO_SLURM: expected an absolute path of plain characters"
  local socket=$FLEXO_SLURM/spool/${host}_4294967295.4294967295 cpus at port
  ((${#socket} < 108)) || cannot "FLEXO_SLURM=$FLEXO_SLURM is too long for unix sockets below it"
  mkdir -p "$FLEXO_SLURM"/{log,run,state,spool}
  chmod 755 "$FLEXO_SLURM" "$FLEXO_SLURM"/{log,run,state,spool}
  install_packages
  at=$(address) || exit
  cpus=${FLEXO_SLURM_CPUS:-$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)} # nproc counts by these two
  if ! daemon munged > /dev/null; then
    [ -s "$FLEXO_SLURM/munge.key" ] || (umask 077 && head -c 1024 /dev/urandom > "$FLEXO_SLURM/munge.key")
    rm -f "$FLEXO_SLURM"/run/munge.socket*
    munged --key-file="$FLEXO_SLURM/munge.key" --socket="$FLEXO_SLURM/run/munge.socket" --num-threads=2 \
      --pid-file="$FLEXO_SLURM/run/munged.pid" --log-file="$FLEXO_SLURM/log/munged.log" \
      --seed-file="$FLEXO_SLURM/state/munged.seed" || broken "munged"
  fi
  if ! daemon slurmctld > /dev/null; then
    stop slurmd || broken "slurmd of an earlier life does not end"
    port=$(free_port "$at") || exit
    write_conf "$at" "$port" "$cpus"
    slurmctld -f "$conf" >> "$FLEXO_SLURM/log/slurmctld.log" 2>&1 || broken "slurmctld"
  fi
  within 20 sinfo -h || broken "slurmctld does not answer"
  if ! daemon slurmd > /dev/null; then
    slurmd -f "$conf" >> "$FLEXO_SLURM/log/slurmd.log" 2>&1 || broken "slurmd"
  fi
  if ! within 10 node_is_ready; then # put aside in an earlier life
    scontrol update NodeName="$host" State=RESUME 2> /dev/null || true
    within 15 node_is_ready || broken "the node is $(sinfo -h -n "$host" -o '%T: %E')"
  fi
  echo "SLURM is up on $host: $(scontrol show node "$host" | grep -oE 'CPUTot=[0-9]+'), state in $FLEXO_SLURM" >&2
}

stop() {
  local pid
  pid=$(daemon "$1") || return 0
  kill "$pid"
  within 10 eval '! daemon '"$1" || { kill -KILL "$pid" 2> /dev/null || true; }
  within 5 eval '! daemon '"$1" || { echo "$1 ($pid) does not end" >&2; return 1; }
  rm -f "$FLEXO_SLURM/run/$1.pid"
}

down() {
  local rc=0 name
  if daemon slurmctld > /dev/null && daemon slurmd > /dev/null; then # what runs a job outlives slurmd
    timeout 10 squeue -h -o %A | sort -u | timeout 10 xargs -r scancel || true
    within 20 eval '[ -z "$(timeout 5 squeue -h)" ]' || { echo "some jobs do not end" >&2; rc=1; }
  fi
  for name in slurmd slurmctld munged; do stop $name || rc=1; done
  if [ "${1:-}" = --purge ] && [ $rc = 0 ]; then rm -rf "$FLEXO_SLURM"; fi
  return $rc
}

environment() { printf 'export SLURM_CONF=%s FLEXO_SLURM=%s\n' "$conf" "$FLEXO_SLURM"; }

status() {
  local name pid rc=0
  for name in munged slurmctld slurmd; do
    if pid=$(daemon $name); then echo "$name runs ($pid)"; else echo "$name does not run"; rc=1; fi
  done
  [ $rc = 0 ] || return 1
  sinfo && squeue
}

case ${1:-} in
  up) up; echo "To reach it: eval \"\$(bash $0 env)\"" >&2 ;;
  env) environment ;;
  status) status ;;
  run)
    shift
    daemon slurmctld > /dev/null || trap 'down $purge' EXIT
    up
    export FLEXO_SLURM
    "$@"
    ;;
  down) down "${2:-}" ;;
  *) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 2 ;;
esac
