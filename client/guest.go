package client

import (
	"net/http"
	"strconv"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/api"
)

// Guest reaches into one sandbox through the API's port.
type Guest struct {
	ID           string
	AgentToken   string // sent to the guest agent; empty for a sandbox that is not secured
	TrafficToken string // sent where the sandbox's public traffic is off

	client *Client
}

// Sandbox makes a handle for the traffic of a sandbox; it asks the server nothing. Set the tokens, or use Guest.
func (c *Client) Sandbox(id string) *Guest { return &Guest{ID: id, client: c} }

// Guest makes a handle from the answer to a create or connect, with its tokens.
func (c *Client) Guest(sb *api.Sandbox) *Guest {
	return &Guest{ID: sb.SandboxID, AgentToken: sb.EnvdAccessToken, TrafficToken: sb.TrafficAccessToken, client: c}
}

// BaseURL is where requests for the sandbox go, without a trailing slash. It is the same for all sandboxes and ports:
// RoundTripper's headers tell them apart.
func (g *Guest) BaseURL() string { return g.client.base.String() }

// HTTPClient returns a client whose requests to BaseURL arrive at this port of the sandbox. It has no overall timeout, so that
// streams may last; use contexts.
func (g *Guest) HTTPClient(port int) *http.Client {
	return &http.Client{
		Transport: g.RoundTripper(port),
		// A redirect of the guest is for its user to see; followed blindly it would carry the tokens elsewhere.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// RoundTripper adds the routing headers and tokens for this port.
func (g *Guest) RoundTripper(port int) http.RoundTripper {
	r := &route{next: g.client.transport, host: g.client.base.Host, id: g.ID, port: strconv.Itoa(port), traffic: g.TrafficToken}
	if port == tartarus.AgentPort {
		r.agent = g.AgentToken // whatever listens on other ports is the guest's own and must not learn it
	}
	return r
}

type route struct {
	next                           http.RoundTripper
	host, id, port, agent, traffic string
}

func (r *route) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Host != r.host {
		return r.next.RoundTrip(req) // never hand tokens to another host
	}
	req = req.Clone(req.Context())
	req.Header.Set(api.HeaderSandbox, r.id)
	req.Header.Set(api.HeaderPort, r.port)
	if r.agent != "" && req.Header.Get(api.HeaderAgentToken) == "" {
		req.Header.Set(api.HeaderAgentToken, r.agent)
	}
	if r.traffic != "" {
		req.Header.Set(api.HeaderTrafficToken, r.traffic)
	}
	return r.next.RoundTrip(req)
}
