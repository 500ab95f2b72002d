#!/bin/sh
# cumulet emulator -- sh servers.sh
set -eu

openstack server create --image cirros --flavor m1.tiny --network private --wait web
test "$(openstack server show -f value -c status web)" = ACTIVE

address=$(openstack floating ip create -f value -c floating_ip_address public)
openstack server add floating ip web "$address"
openstack server list

# The next volume is refused: what does the script do then?
curl -fsS -X POST "$CUMULET_EMULATOR_URL/emulator/faults" -d '{"fail": "volume", "message": "the array is full"}'
openstack volume create --size 1 data
curl -fsS -X POST "$CUMULET_EMULATOR_URL/emulator/settle"
test "$(openstack volume show -f value -c status data)" = error

# An administrator sees a host go down, without anybody waiting for it.
curl -fsS -X PUT "$CUMULET_EMULATOR_URL/emulator/hosts/host-2" -d '{"lost": true}'
curl -fsS -X POST "$CUMULET_EMULATOR_URL/emulator/clock" -d '{"advance": 60}'
openstack --os-cloud emulator-admin compute service list -f value -c Host -c State | grep 'host-2 down'

# As it was in the beginning.
curl -fsS -X POST "$CUMULET_EMULATOR_URL/emulator/reset"
test -z "$(openstack server list -f value)"
echo 'all is well'
