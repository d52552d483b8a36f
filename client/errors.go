package client

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// kindOfStatus is what a status means where the body names no kind.
var kindOfStatus = map[int]tartarus.Kind{
	http.StatusBadRequest:            tartarus.Invalid,
	http.StatusUnauthorized:          tartarus.Unauthenticated,
	http.StatusForbidden:             tartarus.Forbidden,
	http.StatusNotFound:              tartarus.NotFound,
	http.StatusMethodNotAllowed:      tartarus.Invalid,
	http.StatusConflict:              tartarus.Conflict,
	http.StatusRequestEntityTooLarge: tartarus.TooLarge,
	http.StatusUnprocessableEntity:   tartarus.Mismatch,
	http.StatusTooManyRequests:       tartarus.Exhausted,
	http.StatusBadGateway:            tartarus.GuestGone,
	http.StatusServiceUnavailable:    tartarus.Unavailable,
	http.StatusGatewayTimeout:        tartarus.Deadline,
}

// answerError turns an answer that is no success into an error.
func answerError(status int, header http.Header, raw []byte) *tartarus.Error {
	var body api.Error
	_ = json.Unmarshal(raw, &body) // whoever sent something else is told apart by the status alone
	e := &tartarus.Error{Kind: kindOfStatus[status], Message: body.Message}
	if e.Kind == "" {
		e.Kind = tartarus.Internal
	}
	if k := tartarus.Kind(body.ErrorCode); k.Known() {
		e.Kind = k
	} else {
		e.Code = body.ErrorCode
	}
	if status == http.StatusBadGateway && strings.Contains(body.Message, "port is not open") {
		e.Kind = tartarus.PortClosed
	}
	for _, r := range body.Reasons {
		e.Causes = append(e.Causes, tartarus.Cause(r))
	}
	if e.Message == "" {
		e.Message = "the server answered " + strconv.Itoa(status) + " " + http.StatusText(status)
	}
	if s, err := strconv.Atoi(header.Get("Retry-After")); err == nil && s >= 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}
