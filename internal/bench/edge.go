package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/client"
)

// edgeFile is what is carried: large enough that setting up does not count, small enough to stay in memory.
const edgeFile = 64 << 20

// Edge measures a download from a server in a guest, through the edge on the plain port, against the same server reached directly over its cable.
// Small requests are reported beside it.
func Edge(ctx context.Context, cfg Config) (rep *Report, err error) {
	r, err := open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	rep = r.report("edge")
	rep.Concurrency = 1
	g, err := r.sandbox(ctx)
	if err != nil {
		return nil, err
	}
	if err := agent(g).Write(ctx, "", "/tmp/carried", bytes.NewReader(make([]byte, edgeFile))); err != nil {
		return nil, fmt.Errorf("write file to carry: %w", err)
	}
	through := &http.Client{Transport: g.RoundTripper(tartarus.AgentPort)}
	direct := &http.Client{Transport: r.cable(g)}
	defer direct.CloseIdleConnections()

	var ours, floor, smallOurs, smallFloor []time.Duration
	for i := range cfg.N + 1 {
		for _, way := range []struct {
			c            *http.Client
			large, small *[]time.Duration
		}{{through, &ours, &smallOurs}, {direct, &floor, &smallFloor}} {
			large, small, err := carry(ctx, way.c, g)
			if err != nil {
				rep.fail(err)
				continue
			}
			if i > 0 { // the first warms both ways up
				*way.large, *way.small = append(*way.large, large), append(*way.small, small)
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	rep.times(ours)
	rep.PerSecond = rate(len(ours), sum(ours))
	rep.Floor = &Floor{How: "the same download over the sandbox's own cable", P50: quantile(floor, 50), P99: quantile(floor, 99), PerSecond: rate(len(floor), sum(floor))}
	rep.Ratio = round(rep.P50 / rep.Floor.P50)
	rep.Extra["throughput_share"] = round(rep.Floor.P50 / rep.P50)
	rep.Extra["edge_mb_per_second"] = round(edgeFile / 1e6 / (rep.P50 / 1000))
	rep.Extra["direct_mb_per_second"] = round(edgeFile / 1e6 / (rep.Floor.P50 / 1000))
	rep.Extra["small_request_ms"], rep.Extra["small_request_direct_ms"] = quantile(smallOurs, 50), quantile(smallFloor, 50)
	return rep, nil
}

// cable is a transport that reaches the guest without any proxy.
func (r *rig) cable(g *client.Guest) http.RoundTripper {
	return withToken{g.AgentToken, &http.Transport{
		DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return r.stack.Node().Dial(ctx, g.ID, tartarus.AgentPort)
		},
	}}
}

type withToken struct {
	token string
	*http.Transport
}

func (t withToken) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("X-Access-Token", t.token)
	return t.Transport.RoundTrip(req)
}

// carry downloads the file once and asks a small question once.
func carry(ctx context.Context, c *http.Client, g *client.Guest) (large, small time.Duration, err error) {
	began := time.Now()
	n, err := get(ctx, c, g.BaseURL()+"/files?path=/tmp/carried")
	if err != nil {
		return 0, 0, err
	}
	if n != edgeFile {
		return 0, 0, fmt.Errorf("carried %d bytes of %d", n, edgeFile)
	}
	between := time.Now()
	_, err = get(ctx, c, g.BaseURL()+"/health")
	return between.Sub(began), time.Since(between), err
}

func get(ctx context.Context, c *http.Client, url string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	res, err := c.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return 0, fmt.Errorf("%s: %s", req.URL.Path, res.Status)
	}
	return io.Copy(io.Discard, res.Body)
}
