package acheron

import (
	"errors"
	"strings"

	"github.com/tartarus-sandbox/tartarus"
)

// Reason writes an error as the reason of a failed job, kind and code first, so that they survive the queue.
func Reason(err error) string {
	head := string(tartarus.KindOf(err))
	if e, ok := errors.AsType[*tartarus.Error](err); ok && e.Code != "" {
		head += "/" + e.Code
	}
	return head + ": " + err.Error()
}

// FromReason turns a job's reason back into an error. Text without a known kind is Internal.
func FromReason(reason string) *tartarus.Error {
	head, message, ok := strings.Cut(reason, ": ")
	kind, code, _ := strings.Cut(head, "/")
	if ok && tartarus.Kind(kind).Known() {
		return &tartarus.Error{Kind: tartarus.Kind(kind), Code: code, Message: message}
	}
	if reason == "deadline" {
		return &tartarus.Error{Kind: tartarus.Unavailable, Message: "the deadline passed before a node could start the work"}
	}
	return &tartarus.Error{Kind: tartarus.Internal, Message: reason}
}
