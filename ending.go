package tartarus

import "time"

// Termination is a wish to end a sandbox.
type Termination struct {
	Reason  Reason `json:"reason"`
	Message string `json:"message,omitempty"`
	// Grace is how long the guest has to end in good order; nil is what sandbox, template and node say.
	Grace *time.Duration `json:"grace,omitempty"`
	// Checkpoint keeps a snapshot of it. When that fails the sandbox runs on.
	Checkpoint bool `json:"checkpoint,omitempty"`
	// ExportLogs waits until its whole log is on the node's disk.
	ExportLogs bool `json:"exportLogs,omitempty"`
}

// Ending is how far a termination has come. It is pending until the sandbox is stopping, and can be cancelled until then.
type Ending struct {
	Reason     Reason    `json:"reason"`
	Message    string    `json:"message,omitempty"`
	Rung       string    `json:"rung"`  // of the ladder: see package thanatos
	Since      time.Time `json:"since"` // when it began
	Until      time.Time `json:"until"` // when the guest's time is up
	Checkpoint bool      `json:"checkpoint,omitempty"`
	ExportLogs bool      `json:"exportLogs,omitempty"`
	Snapshot   string    `json:"snapshot,omitempty"` // that was kept
	Killed     int       `json:"killed,omitempty"`   // processes that did not end by themselves
	Notes      []string  `json:"notes,omitempty"`    // what did not go as it should
}

// Terminating reports whether the sandbox lives, but is about to be ended.
func (s Sandbox) Terminating() bool { return s.Ending != nil && !s.Phase.Ended() }

// Hibernated reports whether the sandbox sleeps because nothing used it, and wakes when something does.
func (s Sandbox) Hibernated() bool { return s.Phase == Paused && s.Reason == ReasonIdle }

// Reachable reports whether traffic may go to the sandbox. A snapshot holds connections up and does not break them, and one that is hibernated, or on
// its way there or back, is woken by them.
func (s Sandbox) Reachable() bool {
	switch s.Phase {
	case Running, Snapshotting:
		return true
	case Pausing, Paused, Starting:
		return s.Reason == ReasonIdle
	}
	return false
}
