package tartarus

import "slices"

// Phase is where a sandbox stands in its life.
//
//	            ┌────────────── resume ◄─────────────┐
//	queued → starting → running → pausing → paused ──┘     any → stopping → stopped (reason)
//	   └→ rejected        │  └→ snapshotting → running      running ⇄ quarantined
//	                      └→ failed (reason)
type Phase string

// The phases.
const (
	Queued       Phase = "queued"
	Starting     Phase = "starting"
	Running      Phase = "running"
	Pausing      Phase = "pausing"
	Paused       Phase = "paused"
	Snapshotting Phase = "snapshotting"
	Quarantined  Phase = "quarantined"
	Stopping     Phase = "stopping"
	Stopped      Phase = "stopped"
	Failed       Phase = "failed"
	Rejected     Phase = "rejected"
)

// Phases lists every phase, in the order of a life.
var Phases = []Phase{Queued, Starting, Running, Pausing, Paused, Snapshotting, Quarantined, Stopping, Stopped, Failed, Rejected}

// edges is the one table of allowed changes. A resume goes through starting, because it needs a
// node, a slot and an agent that answers, as a first start does.
var edges = map[Phase][]Phase{
	Queued:       {Starting, Rejected, Stopping, Failed},
	Starting:     {Running, Paused, Stopping, Failed}, // paused again when a resume did not work
	Running:      {Pausing, Snapshotting, Quarantined, Stopping, Failed},
	Pausing:      {Paused, Running, Stopping, Failed}, // running again when the snapshot did not work
	Paused:       {Starting, Quarantined, Stopping, Failed},
	Snapshotting: {Running, Stopping, Failed},
	Quarantined:  {Running, Paused, Stopping, Failed},
	Stopping:     {Stopped, Failed},
}

// CanBecome reports whether the edge from p to next exists.
func (p Phase) CanBecome(next Phase) bool { return slices.Contains(edges[p], next) }

// Ended reports whether nothing follows p.
func (p Phase) Ended() bool { return p == Stopped || p == Failed || p == Rejected }

// Live reports whether a sandbox in p holds or may hold a machine on its node.
func (p Phase) Live() bool {
	switch p {
	case Starting, Running, Pausing, Snapshotting, Quarantined, Stopping:
		return true
	}
	return false
}

// Reason says why a sandbox ended.
type Reason string

// The reasons.
const (
	ReasonUser     Reason = "user"      // somebody asked
	ReasonTimeout  Reason = "timeout"   // its time was up
	ReasonIdle     Reason = "idle"      // nothing used it
	ReasonOOM      Reason = "oom"       // it wanted more memory than its limit
	ReasonCrashed  Reason = "crashed"   // the machine or its agent ended by itself
	ReasonPolicy   Reason = "policy"    // a policy ended or refused it
	ReasonDrained  Reason = "drained"   // its node was emptied
	ReasonNodeLost Reason = "node-lost" // its node stopped answering
	ReasonStart    Reason = "start"     // it never came up; the message says why
)

// Transition moves s to next and records why, or refuses an edge that does not exist.
func (s *Sandbox) Transition(next Phase, reason Reason, message string) error {
	if !s.Phase.CanBecome(next) {
		return Errorf(Conflict, "sandbox %s is %s and cannot become %s", s.ID, s.Phase, next)
	}
	s.Phase = next
	if reason != "" {
		s.Reason, s.Message = reason, message
	}
	return nil
}
