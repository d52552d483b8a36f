package link

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// callPath is where calls go: POST callPath + name, with the arguments and the answer as JSON.
const callPath = "/call/"

// wireError is how an error travels.
type wireError struct {
	Kind       tartarus.Kind `json:"kind"`
	Message    string        `json:"message"`
	Code       string        `json:"code,omitempty"`
	RetryAfter time.Duration `json:"retryAfter,omitempty"`
}

// statusRefused marks an answer that is an error of the called method. Everything else but 200 is a failure on the way.
const statusRefused = http.StatusUnprocessableEntity

// dialer opens a connection for one call or tunnel.
type dialer func(ctx context.Context) (net.Conn, error)

// newClient makes a client whose every connection comes from dial.
func newClient(dial dialer) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConns:        256,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true,
	}}
}

// call asks the other side. An answer that did not come is tartarus.Unavailable, and whether the call was carried out is then not known.
func call(ctx context.Context, c *http.Client, name string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode call %s: %w", name, err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://peer"+callPath+name, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := c.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return tartarus.Errorf(tartarus.Unavailable, "call %s: %w", name, err)
	}
	defer res.Body.Close()
	return readAnswer(ctx, name, res, out)
}

func readAnswer(ctx context.Context, name string, res *http.Response, out any) error {
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxBody+1))
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch {
	case err != nil:
		return tartarus.Errorf(tartarus.Unavailable, "read answer of %s: %w", name, err)
	case len(raw) > maxBody:
		return tartarus.Errorf(tartarus.TooLarge, "the answer of %s has more than %d bytes", name, maxBody)
	case res.StatusCode == http.StatusOK:
		if out == nil {
			return nil
		}
		if err := json.Unmarshal(raw, out); err != nil {
			return tartarus.Errorf(tartarus.Internal, "decode answer of %s: %w", name, err)
		}
		return nil
	case res.StatusCode == statusRefused:
		return refusal(raw)
	}
	return tartarus.Errorf(tartarus.Unavailable, "call %s: %s", name, res.Status)
}

// refusal turns the body of an error back into one.
func refusal(raw []byte) error {
	var e wireError
	if err := json.Unmarshal(raw, &e); err != nil || !e.Kind.Known() {
		return tartarus.Errorf(tartarus.Internal, "an error came back that cannot be read")
	}
	return &tartarus.Error{Kind: e.Kind, Message: e.Message, Code: e.Code, RetryAfter: e.RetryAfter}
}

// method serves one kind of call.
type method func(ctx context.Context, body []byte) (any, error)

// typed makes a method of a function of its arguments.
func typed[In any](f func(context.Context, In) (any, error)) method {
	return func(ctx context.Context, body []byte) (any, error) {
		var in In
		if err := json.Unmarshal(body, &in); err != nil {
			return nil, tartarus.Errorf(tartarus.Invalid, "decode arguments: %w", err)
		}
		return f(ctx, in)
	}
}

// methods serves calls by name.
func methods(table map[string]method, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m, ok := table[r.URL.Path[len(callPath):]]
		if !ok {
			refuse(w, tartarus.Errorf(tartarus.Unsupported, "this build has no call %.40q", r.URL.Path))
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			refuse(w, tartarus.Errorf(tartarus.TooLarge, "read call: %w", err))
			return
		}
		out, err := m(r.Context(), body)
		if err != nil {
			if tartarus.Is(err, tartarus.Internal) && r.Context().Err() == nil {
				log.Warn("call failed", "call", r.URL.Path, "error", err)
			}
			refuse(w, err)
			return
		}
		raw, err := json.Marshal(out)
		if err != nil {
			refuse(w, fmt.Errorf("encode answer: %w", err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(raw) // whoever left reads nothing
	})
}

// refuse answers with an error.
func refuse(w http.ResponseWriter, err error) {
	e := wireError{Kind: tartarus.KindOf(err), Message: err.Error()}
	if t, ok := errors.AsType[*tartarus.Error](err); ok {
		e.Code, e.RetryAfter = t.Code, t.RetryAfter
	}
	if errors.Is(err, context.DeadlineExceeded) {
		e.Kind = tartarus.Deadline
	}
	raw, err := json.Marshal(e)
	if err != nil {
		panic(err) // texts and a number can always be encoded
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(statusRefused)
	_, _ = w.Write(raw)
}
