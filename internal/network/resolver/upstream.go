package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	oneTry     = 2 * time.Second // for one server to answer
	rounds     = 2               // through all servers
	maxServers = 3               // as many as the C library asks
)

// ask puts the question to name servers until one gives a usable answer.
func (s *Server) ask(ctx context.Context, p Policy, ask dns.Question) (*dns.Msg, error) {
	servers := p.Servers()
	if len(servers) == 0 {
		var err error
		if servers, err = s.servers.list(); err != nil {
			return nil, err
		}
	}
	servers = servers[:min(len(servers), maxServers)]
	err := errors.New("no name server")
	var poor *dns.Msg // an answer that another server may better
	for range rounds {
		for _, server := range servers {
			r, e := exchange(ctx, server.String(), ask)
			switch {
			case e != nil:
				err = e
			case r.Rcode == dns.RcodeSuccess || r.Rcode == dns.RcodeNameError:
				return r, nil
			default:
				poor = r
			}
			if ctx.Err() != nil {
				return nil, fmt.Errorf("ask name servers: %w", errors.Join(ctx.Err(), err))
			}
		}
		if poor != nil {
			return poor, nil
		}
	}
	return nil, fmt.Errorf("ask name servers: %w", err)
}

// exchange asks one server, by UDP and where the answer does not fit by TCP. Each question has an id and a port of its own.
func exchange(ctx context.Context, server string, ask dns.Question) (*dns.Msg, error) {
	r, err := try(ctx, "udp", server, ask)
	if err == nil && r.Truncated {
		r, err = try(ctx, "tcp", server, ask)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	return r, nil
}

func try(ctx context.Context, network, server string, ask dns.Question) (*dns.Msg, error) {
	var q dns.Msg
	q.SetQuestion(ask.Name, ask.Qtype)
	q.SetEdns0(maxUDP, false)
	c := dns.Client{Net: network, Timeout: oneTry}
	r, _, err := c.ExchangeContext(ctx, &q, server)
	if err != nil {
		return nil, err
	}
	if !r.Response || len(r.Question) != 1 || r.Question[0].Qtype != ask.Qtype || !strings.EqualFold(r.Question[0].Name, ask.Name) {
		return nil, errors.New("it answered another question")
	}
	return r, nil
}

// hostServers are the host's name servers, read again when their file changes.
type hostServers struct {
	path string

	mu     sync.Mutex
	looked time.Time
	stamp  time.Time
	addrs  []netip.AddrPort
}

func newHostServers(path string) *hostServers { return &hostServers{path: path} }

// lookEvery bounds how often the file is looked at.
const lookEvery = 5 * time.Second

func (h *hostServers) list() ([]netip.AddrPort, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.looked) < lookEvery && len(h.addrs) > 0 {
		return h.addrs, nil
	}
	st, err := os.Stat(h.path)
	if err != nil {
		return nil, fmt.Errorf("find the host's name servers: %w", err)
	}
	h.looked = time.Now()
	if st.ModTime().Equal(h.stamp) && len(h.addrs) > 0 {
		return h.addrs, nil
	}
	b, err := os.ReadFile(h.path)
	if err != nil {
		return nil, fmt.Errorf("read the host's name servers: %w", err)
	}
	h.stamp, h.addrs = st.ModTime(), nil
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(f[1]); err == nil {
			h.addrs = append(h.addrs, netip.AddrPortFrom(a, 53))
		}
	}
	if len(h.addrs) == 0 {
		return nil, fmt.Errorf("%s names no server", h.path)
	}
	return h.addrs, nil
}
