#!/bin/bash
# Start Open vSwitch inside a pretend host, datapath in user space allowed. With "restart": only ovs-vswitchd anew;
# "start-switch": it was killed.
set -e
start_switch() {
    ovs-vswitchd unix:/run/openvswitch/db.sock --pidfile --detach --no-chdir --disable-system \
        --log-file=/var/log/openvswitch/ovs-vswitchd.log -vconsole:off
}
if [ "${1:-}" = restart ]; then
    pid=$(cat /run/openvswitch/ovs-vswitchd.pid)
    ovs-appctl -t ovs-vswitchd exit
    while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
    start_switch
    exit
fi
if [ "${1:-}" = start-switch ]; then  # after it was killed
    start_switch
    exit
fi
for f in ovs-vswitchd ovsdb-server; do
    if [ -e /run/openvswitch/$f.pid ]; then
        pid=$(cat /run/openvswitch/$f.pid)
        ovs-appctl -t $f exit || true
        while kill -0 "$pid" 2>/dev/null; do sleep 0.02; done
    fi
done
[ "${1:-}" = stop ] && exit
mkdir -p /run/openvswitch /etc/openvswitch /var/log/openvswitch
rm -f /etc/openvswitch/conf.db
ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server /etc/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock \
    --pidfile --detach --no-chdir --log-file=/var/log/openvswitch/ovsdb-server.log -vconsole:off
ovs-vsctl --no-wait init
start_switch
