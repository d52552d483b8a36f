package acheron

import (
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// Reason writes an error as the reason of a failed job, kind first, so that the kind survives the queue.
func Reason(err error) string { return string(tartarus.KindOf(err)) + ": " + err.Error() }

// FromReason turns a job's reason back into an error. Text without a known kind is Internal.
func FromReason(reason string) *tartarus.Error {
	kind, message, ok := strings.Cut(reason, ": ")
	if ok && tartarus.Kind(kind).Known() {
		return &tartarus.Error{Kind: tartarus.Kind(kind), Message: message}
	}
	if reason == "deadline" {
		return &tartarus.Error{Kind: tartarus.Unavailable, Message: "the deadline passed before a node could start the work"}
	}
	return &tartarus.Error{Kind: tartarus.Internal, Message: reason}
}
