package tartarus

import "time"

// LabelTyphon marks nodes that take what is in quarantine, and nothing else.
const LabelTyphon = "tartarus.io/typhon"

// Quarantine is why a sandbox stands still, cut off from everything, and who asked for it.
type Quarantine struct {
	Since  time.Time `json:"since"`
	By     string    `json:"by"` // id of the key that asked; somebody else has to release it
	Reason string    `json:"reason"`
	// Snapshot is the forensic one: memory, processes and disk as they were when it was frozen. Empty when it could not be taken.
	Snapshot string `json:"snapshot,omitempty"`
	// Paused says that it slept already: nothing of it runs, and Snapshot is what it sleeps as. Was is why it slept, and why it will again when it is
	// released.
	Paused bool   `json:"paused,omitempty"`
	Was    Reason `json:"was,omitempty"`
}

// AtRest reports whether nothing of a sandbox runs though it has not ended: it is a snapshot.
func (s *Sandbox) AtRest() bool {
	return s.Phase == Paused || s.Phase == Quarantined && s.Quarantine != nil && s.Quarantine.Paused
}

// Evidence is what was found in a sandbox when it was put into quarantine. What Guest says comes out of the sandbox itself and is as
// trustworthy as that; everything else is the host's own.
type Evidence struct {
	Sandbox Sandbox     `json:"sandbox"` // without its tokens
	TakenAt time.Time   `json:"takenAt"`
	Guest   *Inspection `json:"guest,omitempty"`
	Refused Refused     `json:"refused"`
	Usage   struct {
		CPU         time.Duration `json:"cpu"`
		MemoryBytes int64         `json:"memoryBytes"`
		DiskBytes   int64         `json:"diskBytes"`
		Threads     int64         `json:"threads"`
	} `json:"usage"`
	Log   []LogEntry `json:"log,omitempty"`
	Notes []string   `json:"notes,omitempty"` // what could not be had, and why
}

// Refused counts what the packet filter did not let a sandbox send.
type Refused struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Inspection is what a guest shows of itself.
type Inspection struct {
	Processes []GuestProcess `json:"processes"`
	Sockets   []GuestSocket  `json:"sockets"`
	Files     []GuestFile    `json:"files"` // that changed since the sandbox began
	Truncated bool           `json:"truncated,omitempty"`
}

// GuestProcess is one process in a guest.
type GuestProcess struct {
	PID     int      `json:"pid"`
	Parent  int      `json:"parent"`
	UID     int      `json:"uid"`
	State   string   `json:"state"`
	Program string   `json:"program,omitempty"` // path of what it runs
	Argv    []string `json:"argv,omitempty"`
	Dir     string   `json:"dir,omitempty"`
}

// GuestSocket is one TCP or UDP socket in a guest.
type GuestSocket struct {
	Proto  string `json:"proto"` // tcp, tcp6, udp or udp6
	Local  string `json:"local"`
	Remote string `json:"remote"`
	State  string `json:"state"`
	UID    int    `json:"uid"`
}

// GuestFile is one file in a guest.
type GuestFile struct {
	Path       string    `json:"path"`
	Size       int64     `json:"size"`
	Mode       string    `json:"mode"`
	UID        int       `json:"uid"`
	GID        int       `json:"gid"`
	Changed    time.Time `json:"changed"`
	Executable bool      `json:"executable,omitempty"`
	Setuid     bool      `json:"setuid,omitempty"`
	SHA256     string    `json:"sha256,omitempty"` // empty for what is too large to read in the time there is
	Target     string    `json:"target,omitempty"` // of a link
}
