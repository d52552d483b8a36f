package process

import (
	"context"
	"net/http"
	"time"
)

// A client that stopped reading blocks the call that writes to it. When the time of such a call is up, writing has to be
// given up too, or call and subscription would stay for as long as the connection does.

type connectionKey struct{}

// WithConnection makes the connection of a request known to calls that run below ctx.
func WithConnection(ctx context.Context, c *http.ResponseController) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}

// lastWrite is how long a client may take to read its last message when its time is up.
const lastWrite = time.Second

// cutWhenDone bounds writing once ctx has ended. The function it returns makes the connection fit for another request.
func cutWhenDone(ctx context.Context) (release func()) {
	c, ok := ctx.Value(connectionKey{}).(*http.ResponseController)
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
