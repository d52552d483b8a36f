package edge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tartarus-sandbox/tartarus/internal/edge"
	"github.com/tartarus-sandbox/tartarus/internal/olympus"
)

// A guest may answer before it has been sent the whole request. Its answer passes at once, and what the client still sends reaches it.
func TestAnswerBeforeTheEndOfTheRequest(t *testing.T) {
	r := newRig(t, nil)
	r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		first := make([]byte, 5)
		if _, err := io.ReadFull(req.Body, first); err != nil {
			return
		}
		_, _ = w.Write(first)
		w.(http.Flusher).Flush()
		_, _ = io.Copy(w, req.Body)
	}))
	sb := r.sandbox(nil)
	for name, do := range r.clients(sb) {
		t.Run(name, func(t *testing.T) {
			out, in := io.Pipe()
			answered := make(chan struct{})
			go func() {
				_, _ = io.WriteString(in, "first")
				select {
				case <-answered:
					_, _ = io.WriteString(in, "rest")
					_ = in.Close()
				case <-time.After(20 * time.Second):
					_ = in.CloseWithError(errors.New("there is no answer"))
				}
			}()
			res, err := do("POST", "/", out)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			close(answered)
			if got, err := io.ReadAll(res.Body); err != nil || string(got) != "firstrest" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

// An answer arrives whole even when it begins before the edge has noticed that the request is at its end: what has just been written to
// a guest may be answered before the writer runs again.
func TestAnswerOvertakesTheEndOfTheRequest(t *testing.T) {
	r := newRig(t, func(c *edge.Config) { c.Fleet = slowFleet{c.Fleet} })
	answer := bytes.Repeat([]byte("0123456789"), 1_000_000)
	r.guest(3000, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.ReadAll(req.Body)
		_, _ = w.Write(answer)
	}))
	sb := r.sandbox(nil)
	for name, do := range r.clients(sb) {
		t.Run(name, func(t *testing.T) {
			var all sync.WaitGroup
			for n := range 8 {
				all.Go(func() {
					var body io.Reader = strings.NewReader(`{"code":"print()"}`)
					if n%2 == 0 {
						body = io.MultiReader(body) // of a length that nobody knows: chunked
					}
					res, err := do("POST", "/", body)
					if err != nil {
						t.Error(err)
						return
					}
					defer res.Body.Close()
					got, err := io.ReadAll(res.Body)
					if err != nil || !bytes.Equal(got, answer) {
						t.Errorf("request %d: %d of %d bytes, %v", n, len(got), len(answer), err)
					}
				})
			}
			all.Wait()
		})
	}
}

// slowFleet is a fleet whose connections return from a write only when the other side has had time to answer it.
type slowFleet struct{ olympus.Fleet }

func (f slowFleet) Node(ctx context.Context, name string) (olympus.Node, error) {
	n, err := f.Fleet.Node(ctx, name)
	return slowNode{n}, err
}

type slowNode struct{ olympus.Node }

func (n slowNode) Dial(ctx context.Context, id string, port int) (net.Conn, error) {
	c, err := n.Node.Dial(ctx, id, port)
	if err != nil {
		return nil, fmt.Errorf("dial slowly: %w", err)
	}
	return slowConn{c}, nil
}

type slowConn struct{ net.Conn }

func (c slowConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	time.Sleep(20 * time.Millisecond) // not a wait for anything: this is the slowness
	return n, err
}
