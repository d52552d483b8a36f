// Package vmm is the seam between a sandbox and what runs it: a Driver boots, restores or adopts
// a Machine. A Machine that exists on the host is always described by a Record from which a later
// process can adopt it; nothing of a driver lives on a host without one.
//
// internal/vmm/vmmtest holds the conformance suite that every driver passes.
package vmm

import (
	"context"
	"encoding/json"
	"io"
	"net/netip"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Driver makes machines of one kind. All methods may be called concurrently.
type Driver interface {
	// Name is the word users write after --runtime.
	Name() string

	// Probe finds out whether this host can run machines of this kind, by trying where trying is
	// cheap. It never returns an error: what is wrong goes into Support.Reason.
	Probe(ctx context.Context) Support

	// Boot starts a machine from cold. It returns when the guest's first process runs, not when the
	// guest agent answers. When it fails or ctx ends, nothing of the machine is left behind.
	// Two machines with the same Config.ID are a tartarus.Conflict.
	Boot(ctx context.Context, c Config) (Machine, error)

	// Restore starts a machine from the snapshot in dir, which Machine.Snapshot wrote, under a new
	// identity and network interface. The guest goes on running where it was. The snapshot is left
	// as it was and may be restored any number of times, also at once. A snapshot that is damaged or
	// comes from another runtime version is tartarus.Corrupt or tartarus.Unsupported, and nothing runs.
	Restore(ctx context.Context, c Config, dir string) (Machine, error)

	// Adopt takes over a machine that an earlier process made. A machine that no longer runs, or whose
	// process is not the recorded one, is tartarus.NotFound; what is left of it is removed by then.
	Adopt(ctx context.Context, r Record) (Machine, error)

	// Leftovers lists what this driver finds on the host (processes, cgroups, mounts, folders) that belongs to
	// no id for which owned is true. With remove it takes them away. Only things below this driver's
	// own state folder and name prefix are ever touched.
	Leftovers(ctx context.Context, owned func(id string) bool, remove bool) ([]Leftover, error)
}

// Machine is one running guest. All methods may be called concurrently.
type Machine interface {
	// Record describes the machine for Driver.Adopt.
	Record() Record

	// Pause stops the guest's processors; Resume lets them go on. Both do nothing when already so.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error

	// Snapshot writes memory, devices and the writable disk, frozen at one instant, into dir, which exists
	// and is empty. Afterwards the guest is in the state it was in before (running or paused).
	// A Snapshot that fails leaves the guest as it was and dir without a usable snapshot.
	Snapshot(ctx context.Context, dir string) error

	// Usage reads what the machine and everything that serves it uses on the host.
	Usage(ctx context.Context) (Usage, error)

	// Wait blocks until the machine has ended, by itself or by Stop, and says how. Every caller gets the same Exit.
	// When ctx ends first, its error.
	Wait(ctx context.Context) (Exit, error)

	// Stop ends the guest at once and removes all that the machine holds on the host: processes, cgroup,
	// files, but not the network slot, which is its owner's. It does nothing when already done, and it finishes
	// what an earlier Stop could not.
	Stop(ctx context.Context) error
}

// Execer is a Machine that can start a process in the guest by the runtime's own means, without the agent.
// Benchmarks use it as their floor.
type Execer interface {
	// Exec runs argv as root, copies its output to stdout and returns its exit code.
	Exec(ctx context.Context, argv []string, stdout io.Writer) (int, error)
}

// Differ is a Machine that can write only what changed since its last snapshot, while its guest stands still for much less time.
type Differ interface {
	// SnapshotDiff is Snapshot, but of the memory only what changed since the snapshot in the folder base, which must be
	// the machine's last, or the one it was restored from: another is tartarus.Conflict, and a driver that was not told to track changes
	// says tartarus.Unsupported. What it writes is restored after Merger.Merge only. When it fails, what changed is known no more.
	SnapshotDiff(ctx context.Context, dir, base string) error

	// CanDiff reports why SnapshotDiff would not work at this moment; nil when it would. It asks nobody and takes no time.
	CanDiff(base string) error
}

// Merger is a Driver whose machines are Differs.
type Merger interface {
	// Merge makes of a whole snapshot and those that build on it, in order, one whole snapshot in dir, which exists and is
	// empty. It is what the last one stands for, and can take its place in the chain. The others are left as they were. A layer that is damaged is
	// tartarus.Corrupt, with its name; one that does not build on the one before is tartarus.Invalid.
	Merge(ctx context.Context, chain []Layer, dir string) error
}

// Layer is a snapshot in a chain.
type Layer struct {
	Name string // for errors
	Dir  string
}

// Config describes the machine to make.
type Config struct {
	ID        string             // fixed length, lower-case letters and digits
	RootFS    string             // path of the template's EROFS image
	Args      []string           // the guest's first process; empty means the guest agent
	Env       []string           // its environment
	Hostname  string             // what the guest calls itself
	Resources tartarus.Resources // limits, enforced by the host
	Interface *Interface         // nil for a guest without any network
}

// Interface is the guest's end of a network slot.
type Interface struct {
	NetNS      string       // path of the network namespace in which the device lives
	Device     string       // name of the device inside it (a veth end, or a TAP for virtual machines)
	MAC        string       // the guest's hardware address
	Address    netip.Prefix // the guest's address
	Gateway    netip.Addr   // the host's end, the guest's default route
	GatewayMAC string       // its hardware address: a permanent neighbour, so that no start waits for ARP
	MTU        int
}

// Record is what a later process needs to adopt a machine.
type Record struct {
	Driver string          `json:"driver"`
	ID     string          `json:"id"`
	State  json.RawMessage `json:"state,omitempty"` // the driver's own
}

// Support says what a driver can do on this host.
type Support struct {
	Usable  bool          `json:"usable"`
	Tier    tartarus.Tier `json:"tier"`
	Version string        `json:"version,omitempty"`
	Reason  string        `json:"reason,omitempty"` // why not usable, and what to do
}

// Usage is what a machine costs the host now.
type Usage struct {
	CPU         time.Duration // processor time since it began
	MemoryBytes int64         // charged memory of all its processes
	DiskBytes   int64         // its writable layer on the host
	PIDs        int64         // host threads
}

// Exit is how a machine ended.
type Exit struct {
	Reason  tartarus.Reason // user (Stop), oom, or crashed
	Message string
	// Forbidden says that what ran it was killed over a system call that it never makes: something in it was taken over.
	Forbidden bool
}

// Leftover is something on the host that no sandbox owns.
type Leftover struct {
	Kind string `json:"kind"` // process, cgroup, mount, netns, link, nftables, folder, socket
	Name string `json:"name"`
}
