package tartarus

import (
	"errors"
	"fmt"
	"time"
)

// Kind sorts errors by what a caller can do about them. Only the API edge turns a Kind into a
// status; everything below wraps and returns.
type Kind string

// The kinds.
const (
	Internal        Kind = "internal"        // ours to mend
	Invalid         Kind = "invalid"         // the request can never work
	Unauthenticated Kind = "unauthenticated" // no or wrong credentials
	Forbidden       Kind = "forbidden"       // known, but not allowed
	NotFound        Kind = "not_found"       // absent, or not yours
	Conflict        Kind = "conflict"        // the state does not permit it now
	Mismatch        Kind = "mismatch"        // an idempotency key came back with another body
	TooLarge        Kind = "too_large"       // over a documented bound
	Exhausted       Kind = "exhausted"       // over a quota or rate; later may work
	Unavailable     Kind = "unavailable"     // no capacity or a part is away; later may work
	Deadline        Kind = "deadline"        // the caller's time ran out
	Unsupported     Kind = "unsupported"     // this host, runtime or build cannot do it
	Corrupt         Kind = "corrupt"         // stored bytes are not what was stored
	GuestGone       Kind = "guest_gone"      // the sandbox does not run
	PortClosed      Kind = "port_closed"     // it runs, but nobody listens there
	Denied          Kind = "denied"          // a judge or policy said no
)

// Known reports whether k is one of the kinds above.
func (k Kind) Known() bool {
	switch k {
	case Internal, Invalid, Unauthenticated, Forbidden, NotFound, Conflict, Mismatch, TooLarge, Exhausted,
		Unavailable, Deadline, Unsupported, Corrupt, GuestGone, PortClosed, Denied:
		return true
	}
	return false
}

// CodeAgentLost is the Code of a refused resume: the guest agent did not answer when the sandbox was paused. SDKs know it by this name.
const CodeAgentLost = "sandbox_snapshot_guest_agent_unresponsive"

// Error is an error with a Kind that a client may be shown.
type Error struct {
	Kind       Kind
	Message    string
	Code       string        // stable machine-readable detail, optional
	RetryAfter time.Duration // how long to wait before a retry may help; 0 when unknown
	Err        error         // the cause, for logs and errors.Is
	Causes     []Cause       // of a refusal by judges, one by one
}

// Cause is one reason why a judge refused.
type Cause struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Judge   string `json:"judge,omitempty"`
	Rule    string `json:"rule,omitempty"`
	Policy  string `json:"policyVersion,omitempty"` // name@version
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errorf makes an Error whose Message is the whole formatted text; the operand of %w is its cause.
func Errorf(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), Err: errors.Unwrap(err)}
}

// KindOf finds the Kind of err: that of the outermost Error in its chain, Internal when there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Is reports whether err's chain has an Error of this kind as its outermost.
func Is(err error, kind Kind) bool { return err != nil && KindOf(err) == kind }
