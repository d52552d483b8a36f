package client

import (
	"context"
	"net/http"
	"time"

	"github.com/tartarus-sandbox/tartarus/api"
)

// NodeToken makes a token that lets one node join the fleet, once. With a name only that node may use it; a life of 0 is the server's default.
func (c *Client) NodeToken(ctx context.Context, node string, life time.Duration) (api.Token, error) {
	in := api.TokenRequest{Node: node}
	if life > 0 {
		in.Seconds = *seconds(life)
	}
	var out api.Token
	return out, c.do(ctx, http.MethodPost, "/fleet/tokens", nil, http.Header{}, in, &out)
}
