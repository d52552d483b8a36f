package process

import (
	"context"
	"net/http"
	"time"
)

// connection is what a call answers over, beyond what Connect does with it.
type connection struct {
	http.ResponseWriter
	*http.ResponseController
	held bool // what is written waits for the end of the call
}

type connectionKey struct{}

// WithConnections makes its connection known to each call that h serves.
func WithConnections(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := &connection{ResponseWriter: w, ResponseController: http.NewResponseController(w)}
		h.ServeHTTP(c, r.WithContext(context.WithValue(r.Context(), connectionKey{}, c)))
	})
}

// Unwrap implements what http.ResponseController asks for.
func (c *connection) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// Flush implements http.Flusher.
func (c *connection) Flush() {
	if !c.held {
		_ = c.ResponseController.Flush() // a connection that is gone shows it to the next write
	}
}

// hold keeps back what is written from now on until the call is over, moments later: its last message then travels with the end of the
// stream, in one write instead of three.
func hold(ctx context.Context) {
	if c, ok := ctx.Value(connectionKey{}).(*connection); ok {
		c.held = true
	}
}

// A client that stopped reading blocks the call that writes to it. When the time of such a call is up, writing has to be
// given up too, or call and subscription would stay for as long as the connection does.

// lastWrite is how long a client may take to read its last message when its time is up.
const lastWrite = time.Second

// cutWhenDone bounds writing once ctx has ended. The function it returns makes the connection fit for another request.
func cutWhenDone(ctx context.Context) (release func()) {
	c, ok := ctx.Value(connectionKey{}).(*connection)
	if !ok {
		return func() {}
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = c.SetWriteDeadline(time.Now().Add(lastWrite)) // a connection that is gone needs none
	})
	return func() {
		if !stop() {
			<-fired
			_ = c.SetWriteDeadline(time.Time{})
		}
	}
}
