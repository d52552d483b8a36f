package olympus

import (
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// statusOf is the one place where a kind becomes a status. 503 is also for what is ours to mend: the request was good and may be sent
// again. 500 is left to what nobody foresaw.
var statusOf = map[tartarus.Kind]int{
	tartarus.Internal:        http.StatusServiceUnavailable,
	tartarus.Invalid:         http.StatusBadRequest,
	tartarus.Unauthenticated: http.StatusUnauthorized,
	tartarus.Forbidden:       http.StatusForbidden,
	tartarus.NotFound:        http.StatusNotFound,
	tartarus.Conflict:        http.StatusConflict,
	tartarus.Mismatch:        http.StatusUnprocessableEntity,
	tartarus.TooLarge:        http.StatusRequestEntityTooLarge,
	tartarus.Exhausted:       http.StatusTooManyRequests,
	tartarus.Unavailable:     http.StatusServiceUnavailable,
	tartarus.Deadline:        http.StatusGatewayTimeout,
	tartarus.Unsupported:     http.StatusBadRequest,
	tartarus.Corrupt:         http.StatusConflict,
	tartarus.GuestGone:       http.StatusNotFound,
	tartarus.PortClosed:      http.StatusBadGateway,
	tartarus.Denied:          http.StatusForbidden,
}

// codeStartFailed marks a start that a node gave up: the same request will most likely fail again.
const codeStartFailed = "start_failed"

// fail answers with an error.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e, ok := errors.AsType[*tartarus.Error](err)
	switch {
	case !ok && r.Context().Err() != nil:
		e = &tartarus.Error{Kind: tartarus.Unavailable, Message: "the client did not wait"} // and does not read this
	case !ok || e.Kind == tartarus.Internal && e.Code != codeStartFailed:
		s.log.Error("request failed", "method", r.Method, "path", r.URL.Path, "request", w.Header().Get(headerRequest), "error", err)
		e = &tartarus.Error{
			Kind: tartarus.Internal, RetryAfter: time.Second,
			Message: "something inside failed; the server's log has it under request " + w.Header().Get(headerRequest),
		}
	}
	status, known := statusOf[e.Kind]
	if !known {
		status = http.StatusServiceUnavailable
	}
	h := w.Header()
	switch {
	case e.Code == codeStartFailed && status >= 500:
		status = http.StatusBadGateway // the node, not the API, could not do it
		h.Set(api.HeaderShouldRetry, "false")
	case status == http.StatusTooManyRequests || status >= 500:
		h.Set(api.HeaderShouldRetry, "true")
		// Whole seconds, rounded up, and at least one: clients that read 0 come back at once.
		h.Set("Retry-After", strconv.FormatInt(max(1, int64((e.RetryAfter+time.Second-1)/time.Second)), 10))
	case status == http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Bearer realm="tartarus"`)
	}
	code := e.Code
	if code == "" {
		code = string(e.Kind)
	}
	writeJSON(w, status, api.Error{Code: status, Message: e.Message, ErrorCode: code, Reasons: causesOf(e)})
}

func causesOf(e *tartarus.Error) (out []api.Reason) {
	for _, c := range e.Causes {
		out = append(out, api.Reason(c))
	}
	return out
}

// refuse answers with a status that no kind stands for.
func refuse(w http.ResponseWriter, status int, message, code string) {
	writeJSON(w, status, api.Error{Code: status, Message: message, ErrorCode: code})
}

// writeJSON sends a whole answer at once, so that nothing is sent of one that cannot be encoded.
func writeJSON(w http.ResponseWriter, status int, body any) {
	raw, err := json.Marshal(body)
	if err != nil {
		panic(err) // only our own types come here
	}
	h := w.Header()
	h["Content-Type"] = jsonType
	h.Set("Content-Length", strconv.Itoa(len(raw)))
	w.WriteHeader(status)
	_, _ = w.Write(raw) // a client that left reads nothing
}

var jsonType = []string{"application/json"}

// noContent answers that it is done. SDKs fail on a success with an empty body of unknown length.
func noContent(w http.ResponseWriter) { w.WriteHeader(http.StatusNoContent) }

// catch turns a panic of a handler into the only 500 there is.
func (s *Server) catch(w http.ResponseWriter, r *http.Request) {
	p := recover()
	if p == nil {
		return
	}
	if p == http.ErrAbortHandler {
		panic(p)
	}
	s.log.Error("handler panicked", "method", r.Method, "path", r.URL.Path, "request", w.Header().Get(headerRequest),
		"panic", p, "stack", string(debug.Stack()))
	w.Header().Set(api.HeaderShouldRetry, "false")
	refuse(w, http.StatusInternalServerError, "the server has a fault; its log has it under request "+w.Header().Get(headerRequest), "internal")
}

// survive keeps the panic of one request's goroutine from ending all others. It is deferred there; the handler's own is caught by catch.
func (s *Server) survive() {
	if p := recover(); p != nil {
		s.log.Error("request panicked", "panic", p, "stack", string(debug.Stack()))
	}
}

var errPanicked = errors.New("a part of the request panicked")
