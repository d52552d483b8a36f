package hades

import (
	"fmt"

	"github.com/tartarus-sandbox/tartarus"
)

// CodeNoRoom is the Code of a node's refusal of a sandbox that it has no room for at the moment: another node may have some.
const CodeNoRoom = "no_room"

// Lacks says what keeps a node from taking one more sandbox with these resources, beside what it has allocated: the empty text when it has room.
// A node and the control plane judge by this alone, so that they never disagree about the same facts. A capacity of zero is not limited.
func (n Node) Lacks(r tartarus.Resources) string {
	if n.Most > 0 && n.Sandboxes >= n.Most {
		return fmt.Sprintf("it holds its limit of %d sandboxes", n.Most)
	}
	for _, of := range []struct {
		what             string
		used, more, most int64
	}{
		{"processors", int64(n.Allocated.VCPU), int64(r.VCPU), int64(n.Capacity.VCPU)},
		{"MB of memory", n.Allocated.MemoryMB, r.MemoryMB, n.Capacity.MemoryMB},
		{"MB of disk", n.Allocated.DiskMB, r.DiskMB, n.Capacity.DiskMB},
	} {
		if of.most > 0 && of.used+of.more > of.most {
			return fmt.Sprintf("%d of its %d %s are given out, and %d more were asked for", of.used, of.most, of.what, of.more)
		}
	}
	return ""
}
