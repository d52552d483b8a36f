package olympus

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// maxBody bounds the body of every request: a thousand environment variables of a kilobyte each.
const maxBody = 1 << 20

// bodyTime is how long a client may take to send it.
const bodyTime = 30 * time.Second

// readBody reads the whole body of a request.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > maxBody {
		return nil, errBodyTooLarge
	}
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	rc := http.NewResponseController(w)
	if rc.SetReadDeadline(time.Now().Add(bodyTime)) == nil {
		// Left in place, it would pass for the client's end while the request waits in the queue.
		defer func() { _ = rc.SetReadDeadline(time.Time{}) }()
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, over := errors.AsType[*http.MaxBytesError](err); over {
		return nil, errBodyTooLarge
	}
	if err != nil {
		return nil, tartarus.Errorf(tartarus.Invalid, "the body did not arrive whole: %w", err)
	}
	return raw, nil
}

var errBodyTooLarge = &tartarus.Error{Kind: tartarus.TooLarge, Message: "the body is over 1 MiB"}

// decode reads a JSON object into v. Unknown fields are passed over unless strict: clients newer than this server send some.
func decode(raw []byte, v any, strict bool) error {
	if t := bytes.TrimLeft(raw, " \t\r\n"); len(t) == 0 || t[0] != '{' {
		return tartarus.Errorf(tartarus.Invalid, "the body must be a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if strict {
		d.DisallowUnknownFields()
	}
	err := d.Decode(v)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		}
		return tartarus.Errorf(tartarus.Invalid, "the body goes on after its JSON object, at %s", position(raw, d.InputOffset()))
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return tartarus.Errorf(tartarus.Invalid, "the body is not JSON at %s: %w", position(raw, syntax.Offset), err)
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return tartarus.Errorf(tartarus.Invalid, "%s must not be a %s, at %s", wrong.Field, wrong.Value, position(raw, wrong.Offset))
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return tartarus.Errorf(tartarus.Invalid, "the body ends in the middle of its JSON, at %s", position(raw, int64(len(raw))))
	}
	return tartarus.Errorf(tartarus.Invalid, "the body is not understood: %w", err)
}

// decodeOptional is decode for a body that may be left out.
func decodeOptional(raw []byte, v any, strict bool) error {
	if len(bytes.TrimLeft(raw, " \t\r\n")) == 0 {
		return nil
	}
	return decode(raw, v, strict)
}

// position names a place in raw as people count it.
func position(raw []byte, offset int64) string {
	before := raw[:min(max(offset, 0), int64(len(raw)))]
	line := 1 + bytes.Count(before, []byte{'\n'})
	column := len(before) - bytes.LastIndexByte(before, '\n') - 1
	return "line " + strconv.Itoa(line) + ", column " + strconv.Itoa(column)
}
