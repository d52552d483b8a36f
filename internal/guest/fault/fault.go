// Package fault turns what went wrong into what a client of the guest agent is told: a Connect code
// for calls, a status with a JSON body for plain routes. Every error that leaves the agent passes
// through it, and an error it does not know is internal, never silent.
package fault

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"syscall"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
)

// Codes of tartarus.Error that need an answer of their own.
const (
	AlreadyExists = "already_exists" // Connect has a code for it, which SDKs turn into "false"
	NoSpace       = "no_space"       // HTTP has a status for it: 507
	NotAcceptable = "not_acceptable" // 406
)

// OS gives an error of the operating system its Kind. An error that has one already keeps it.
func OS(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*tartarus.Error](err); ok {
		return err
	}
	kind, code := tartarus.Internal, ""
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = tartarus.NotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		kind = tartarus.Forbidden
	case errors.Is(err, syscall.ENOTEMPTY): // before ErrExist, which covers it
		kind = tartarus.Conflict
	case errors.Is(err, fs.ErrExist):
		kind, code = tartarus.Conflict, AlreadyExists
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		kind, code = tartarus.Exhausted, NoSpace
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM):
		kind = tartarus.Exhausted
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENAMETOOLONG),
		errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENXIO), errors.Is(err, syscall.ETXTBSY):
		kind = tartarus.Invalid
	case errors.Is(err, syscall.EBUSY), errors.Is(err, syscall.EXDEV), errors.Is(err, syscall.EPIPE):
		kind = tartarus.Conflict
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
		kind = tartarus.Unsupported
	}
	return &tartarus.Error{Kind: kind, Code: code, Message: err.Error(), Err: err}
}

// Connect makes err a Connect error. Errors that are one already, and the ends of contexts, pass as they are.
func Connect(err error) error {
	if err == nil {
		return nil
	}
	if ce, ok := errors.AsType[*connect.Error](err); ok {
		return ce
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return connect.NewError(connectCode(OS(err)), err)
}

func connectCode(err error) connect.Code {
	e, _ := errors.AsType[*tartarus.Error](err)
	if e.Code == AlreadyExists {
		return connect.CodeAlreadyExists
	}
	switch e.Kind {
	case tartarus.Invalid:
		return connect.CodeInvalidArgument
	case tartarus.Unauthenticated:
		return connect.CodeUnauthenticated
	case tartarus.Forbidden, tartarus.Denied:
		return connect.CodePermissionDenied
	case tartarus.NotFound:
		return connect.CodeNotFound
	case tartarus.Conflict, tartarus.Mismatch:
		return connect.CodeFailedPrecondition
	case tartarus.TooLarge, tartarus.Exhausted:
		return connect.CodeResourceExhausted
	case tartarus.Unavailable:
		return connect.CodeUnavailable
	case tartarus.Deadline:
		return connect.CodeDeadlineExceeded
	case tartarus.Unsupported:
		return connect.CodeUnimplemented
	}
	return connect.CodeInternal
}

// HTTP writes err as a JSON body {code, message} with the status of its Kind.
func HTTP(w http.ResponseWriter, err error) {
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		err = tartarus.Errorf(tartarus.TooLarge, "the body is larger than %d bytes", tooLarge.Limit)
	}
	Write(w, httpStatus(OS(err)), err.Error())
}

// Write writes a JSON body {code, message} with the given status.
func Write(w http.ResponseWriter, status int, message string) {
	body, err := json.Marshal(struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
	}{status, message})
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"code":500,"message":"internal"}`)
	}
	h := w.Header()
	h.Del("Content-Encoding")
	h.Del("Content-Length")
	h.Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a client that is gone is not told
}

func httpStatus(err error) int {
	e, _ := errors.AsType[*tartarus.Error](err)
	switch e.Code {
	case NoSpace:
		return http.StatusInsufficientStorage
	case NotAcceptable:
		return http.StatusNotAcceptable
	}
	switch e.Kind {
	case tartarus.Invalid:
		return http.StatusBadRequest
	case tartarus.Unauthenticated:
		return http.StatusUnauthorized
	case tartarus.Forbidden, tartarus.Denied:
		return http.StatusForbidden
	case tartarus.NotFound:
		return http.StatusNotFound
	case tartarus.Conflict, tartarus.Mismatch:
		return http.StatusConflict
	case tartarus.TooLarge:
		return http.StatusRequestEntityTooLarge
	case tartarus.Exhausted:
		return http.StatusTooManyRequests
	case tartarus.Unavailable:
		return http.StatusServiceUnavailable
	case tartarus.Deadline:
		return http.StatusGatewayTimeout
	case tartarus.Unsupported:
		return http.StatusNotImplemented
	}
	return http.StatusInternalServerError
}
