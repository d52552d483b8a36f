package network

import (
	"os/exec"
	"testing"
)

func dump(t *testing.T) {
	out, err := exec.Command("sh", "-c", "nft list ruleset; ip -d addr; ip neigh; ip route; cat /proc/mounts | grep tart| head -3").CombinedOutput()
	t.Log(string(out), err)
}
