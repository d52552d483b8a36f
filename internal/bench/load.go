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

// load sends the same request n times, so many at once, and says how long each took. It speaks HTTP over connections of its own with as little
// as that takes: what the clients use of the processors is missing from what is measured.
func load(ctx context.Context, to, secret, body string, n, concurrency int, each func(status int, body []byte, took time.Duration, err error)) time.Duration {
	var next atomic.Int64
	var wg sync.WaitGroup
	began := time.Now()
	for range min(concurrency, n) {
		wg.Go(func() {
			c, err := newPoster(ctx, to, secret, body)
			if err != nil {
				each(0, nil, 0, err)
				return
			}
			defer c.conn.Close()
			for next.Add(1) <= int64(n) && ctx.Err() == nil {
				at := time.Now()
				status, body, err := c.post()
				each(status, body, time.Since(at), err)
				if err != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(began)
}

// poster sends one request over and over on one connection.
type poster struct {
	conn    net.Conn
	in      *bufio.Reader
	request []byte
}

func newPoster(ctx context.Context, to, secret, body string) (*poster, error) {
	u, err := url.Parse(to)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{Timeout: answerTime}).DialContext(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	return &poster{conn: conn, in: bufio.NewReader(conn), request: fmt.Appendf(nil,
		"POST %s HTTP/1.1\r\nHost: %s\r\nX-API-KEY: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", u.RequestURI(), u.Host, secret, len(body), body)}, nil
}

func (p *poster) post() (status int, body []byte, err error) {
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
