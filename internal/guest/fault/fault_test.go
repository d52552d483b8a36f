package fault_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"syscall"
	"testing"

	"connectrpc.com/connect"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/guest/fault"
)

// Every error has an answer in both worlds.
func TestAnswers(t *testing.T) {
	for _, c := range []struct {
		err    error
		code   connect.Code
		status int
	}{
		{syscall.ENOENT, connect.CodeNotFound, 404},
		{&os.PathError{Op: "open", Path: "x", Err: syscall.EACCES}, connect.CodePermissionDenied, 403},
		{syscall.EPERM, connect.CodePermissionDenied, 403},
		{syscall.EROFS, connect.CodePermissionDenied, 403},
		{syscall.EEXIST, connect.CodeAlreadyExists, 409},
		{syscall.ENOSPC, connect.CodeResourceExhausted, 507},
		{fmt.Errorf("write: %w", syscall.EDQUOT), connect.CodeResourceExhausted, 507},
		{syscall.EMFILE, connect.CodeResourceExhausted, 429},
		{syscall.ENOTDIR, connect.CodeInvalidArgument, 400},
		{syscall.ELOOP, connect.CodeInvalidArgument, 400},
		{syscall.ENOTEMPTY, connect.CodeFailedPrecondition, 409},
		{syscall.EOPNOTSUPP, connect.CodeUnimplemented, 501},
		{syscall.EIO, connect.CodeInternal, 500},
		{errors.New("odd"), connect.CodeInternal, 500},
		{tartarus.Errorf(tartarus.Invalid, "x"), connect.CodeInvalidArgument, 400},
		{tartarus.Errorf(tartarus.Unauthenticated, "x"), connect.CodeUnauthenticated, 401},
		{tartarus.Errorf(tartarus.Forbidden, "x"), connect.CodePermissionDenied, 403},
		{tartarus.Errorf(tartarus.Conflict, "x"), connect.CodeFailedPrecondition, 409},
		{tartarus.Errorf(tartarus.TooLarge, "x"), connect.CodeResourceExhausted, 413},
		{tartarus.Errorf(tartarus.Exhausted, "x"), connect.CodeResourceExhausted, 429},
		{tartarus.Errorf(tartarus.Unavailable, "x"), connect.CodeUnavailable, 503},
		{tartarus.Errorf(tartarus.Deadline, "x"), connect.CodeDeadlineExceeded, 504},
		{tartarus.Errorf(tartarus.Corrupt, "x"), connect.CodeInternal, 500},
		// A Kind that was given stays, whatever is below it.
		{tartarus.Errorf(tartarus.Invalid, "x: %w", syscall.ENOENT), connect.CodeInvalidArgument, 400},
		{&tartarus.Error{Kind: tartarus.Invalid, Code: fault.NotAcceptable, Message: "x"}, connect.CodeInvalidArgument, 406},
		{fmt.Errorf("read: %w", &http.MaxBytesError{Limit: 7}), connect.CodeInternal, 413},
	} {
		if got := connect.CodeOf(fault.Connect(c.err)); got != c.code {
			t.Errorf("%v: %s, want %s", c.err, got, c.code)
		}
		w := httptest.NewRecorder()
		fault.HTTP(w, c.err)
		if w.Code != c.status || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%v: %d %s, want %d", c.err, w.Code, w.Body, c.status)
		}
	}
	if fault.Connect(nil) != nil || fault.OS(nil) != nil {
		t.Error("no error is no error")
	}
	for _, err := range []error{context.Canceled, fmt.Errorf("x: %w", context.DeadlineExceeded), connect.NewError(connect.CodeAborted, errors.New("x"))} {
		if got := fault.Connect(err); !errors.Is(got, err) && got.Error() != err.Error() {
			t.Errorf("%v became %v", err, got)
		}
	}
}
