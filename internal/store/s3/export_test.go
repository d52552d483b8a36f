package s3

import (
	"context"
	"net"
)

// Via sends the connections of a store through another address.
func Via(s *Store, addr string) {
	s.http.DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, addr)
	}
}
