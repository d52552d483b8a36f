package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/client"
)

// edgeFile is what is carried: large enough that setting up does not count, small enough to stay in memory.
const edgeFile = 64 << 20

// Edge measures a download from a server in a guest, through the edge on the plain port, against the same server reached directly over its cable.
// The same over TLS, by HTTP/1.1 and by HTTP/2, and small requests are reported beside it.
func Edge(ctx context.Context, cfg Config) (rep *Report, err error) {
	r, err := openAt(ctx, cfg, "127.0.0.1:0")
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
	ways, err := r.ways(g)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, w := range ways {
			w.client.CloseIdleConnections()
		}
	}()
	for i := range cfg.N + 1 {
		for _, w := range ways {
			large, small, err := w.carry(ctx)
			if err != nil {
				rep.fail(err)
				continue
			}
			if i > 0 { // the first warms all ways up
				w.large, w.small = append(w.large, large), append(w.small, small)
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	plain, direct := ways[0], ways[1]
	rep.times(plain.large)
	rep.PerSecond = rate(len(plain.large), sum(plain.large))
	rep.Floor = &Floor{How: "the same download over the sandbox's own cable", P50: quantile(direct.large, 50), P99: quantile(direct.large, 99), PerSecond: rate(len(direct.large), sum(direct.large))}
	rep.Ratio = round(rep.P50 / rep.Floor.P50)
	for _, w := range ways {
		rep.Extra[w.name+"_mb_per_second"] = round(edgeFile / 1e6 / (quantile(w.large, 50) / 1000))
		rep.Extra[w.name+"_small_request_ms"] = quantile(w.small, 50)
		if w != direct {
			rep.Extra[w.name+"_share"] = round(rep.Floor.P50 / quantile(w.large, 50))
		}
	}
	return rep, nil
}

// way is one way to the guest's server.
type way struct {
	name         string
	base         string
	client       *http.Client
	large, small []time.Duration
}

// ways are all there are, the plain port first, then the cable.
func (r *rig) ways(g *client.Guest) ([]*way, error) {
	about := r.stack.About()
	authority, err := os.ReadFile(about.CAFile)
	if err != nil {
		return nil, fmt.Errorf("read the edge's authority: %w", err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(authority)
	at, err := url.Parse(about.EdgeURL)
	if err != nil {
		return nil, fmt.Errorf("read the edge's address: %w", err)
	}
	// Whatever resolves the name; here it is the address that counts.
	name := fmt.Sprintf("https://%d-%s.%s", tartarus.AgentPort, g.ID, r.cfg.Daemon.Domain)
	encrypted := func(protocols func(*http.Protocols)) *http.Client {
		t := &http.Transport{
			DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: trusted}, Protocols: new(http.Protocols),
			DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, at.Host)
			},
		}
		protocols(t.Protocols)
		return &http.Client{Transport: withToken{g.AgentToken, t}}
	}
	return []*way{
		{name: "plain", base: g.BaseURL(), client: &http.Client{Transport: g.RoundTripper(tartarus.AgentPort)}},
		{name: "direct", base: g.BaseURL(), client: &http.Client{Transport: r.cable(g)}},
		{name: "tls", base: name, client: encrypted(func(p *http.Protocols) { p.SetHTTP1(true) })},
		{name: "tls_http2", base: name, client: encrypted(func(p *http.Protocols) { p.SetHTTP2(true) })},
	}, nil
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
func (w *way) carry(ctx context.Context) (large, small time.Duration, err error) {
	began := time.Now()
	n, err := get(ctx, w.client, w.base+"/files?path=/tmp/carried")
	if err != nil {
		return 0, 0, err
	}
	if n != edgeFile {
		return 0, 0, fmt.Errorf("carried %d bytes of %d", n, edgeFile)
	}
	between := time.Now()
	_, err = get(ctx, w.client, w.base+"/health")
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
