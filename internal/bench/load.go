package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// answerTime bounds the wait for one answer.
const answerTime = time.Minute

// clients are connections on which the same request is sent over and over. They speak HTTP with as little as that takes: what the clients use of
// the processors is missing from what is measured.
type clients []*poster

// dial connects n clients. The caller closes them.
func dial(ctx context.Context, to, secret, body string, n int) (clients, error) {
	var all clients
	for range n {
		p, err := newPoster(ctx, to, secret, body)
		if err != nil {
			return nil, errors.Join(err, all.close())
		}
		all = append(all, p)
	}
	return all, nil
}

func (all clients) close() error {
	for _, p := range all {
		_ = p.conn.Close() // everything that was asked for was read
	}
	return nil
}

// load sends n requests, each client one at a time, and says how long each took. A client whose connection fails sends no more.
func (all clients) load(ctx context.Context, n int, each func(status int, body []byte, took time.Duration, err error)) time.Duration {
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for _, p := range all {
		wg.Go(func() {
			for !p.broken && ctx.Err() == nil && next.Add(1) <= int64(n) {
				at := time.Now()
				status, body, err := p.post(ctx)
				p.broken = err != nil
				each(status, body, time.Since(at), err)
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}

// poster sends one request over and over on one connection.
type poster struct {
	addr    string
	conn    net.Conn
	in      *bufio.Reader
	used    time.Time // last
	request []byte
	broken  bool
}

// idleMost is how long a connection may have been idle to be used again: well below the time after which the server closes it.
const idleMost = 15 * time.Second

func newPoster(ctx context.Context, to, secret, body string) (*poster, error) {
	u, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	p := &poster{addr: u.Host, request: fmt.Appendf(nil,
		"POST %s HTTP/1.1\r\nHost: %s\r\nX-API-KEY: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", u.RequestURI(), u.Host, secret, len(body), body)}
	return p, p.connect(ctx)
}

func (p *poster) connect(ctx context.Context) error {
	conn, err := (&net.Dialer{Timeout: answerTime}).DialContext(ctx, "tcp", p.addr)
	if err == nil {
		p.conn, p.in, p.used = conn, bufio.NewReader(conn), time.Now()
	}
	return err
}

func (p *poster) post(ctx context.Context) (status int, body []byte, err error) {
	if time.Since(p.used) > idleMost {
		_ = p.conn.Close() // there is nothing on it
		if err := p.connect(ctx); err != nil {
			return 0, nil, err
		}
	}
	p.used = time.Now()
	if err := p.conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return 0, nil, err
	}
	if _, err := p.conn.Write(p.request); err != nil {
		return 0, nil, err
	}
	res, err := http.ReadResponse(p.in, nil)
	if err != nil {
		return 0, nil, err
	}
	body, err = io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err == nil && res.Close {
		err = errors.New("the server closes the connection")
	}
	return res.StatusCode, body, errors.Join(err, res.Body.Close())
}
