package client

import (
	"context"
	"net/http"
	"net/url"

	"github.com/tartarus-sandbox/tartarus/api"
)

// CreateSecret stores a secret under a name. Its value is never returned.
func (c *Client) CreateSecret(ctx context.Context, in api.NewSecret) (*api.Secret, error) {
	var out api.Secret
	if err := c.do(ctx, http.MethodPost, "/secrets", nil, nil, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// UpdateSecret gives a secret, by id or name, a new value, and new metadata unless it is nil.
func (c *Client) UpdateSecret(ctx context.Context, secret string, in api.SecretUpdate) (*api.Secret, error) {
	var out api.Secret
	if err := c.do(ctx, http.MethodPost, "/secrets/"+url.PathEscape(secret), nil, nil, in, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Secret describes a secret by id or name.
func (c *Client) Secret(ctx context.Context, secret string) (*api.Secret, error) {
	var out api.Secret
	if err := c.do(ctx, http.MethodGet, "/secrets/"+url.PathEscape(secret), nil, nil, nil, &out); err != nil {
		return nil, err
	}
	return &out, nil
}

// Secrets describes all secrets of the tenant, by name.
func (c *Client) Secrets(ctx context.Context) (all []api.Secret, err error) {
	q := url.Values{}
	for {
		var page []api.Secret
		h, err := c.call(ctx, http.MethodGet, "/secrets", q, nil, nil, &page)
		if err != nil {
			return nil, err
		}
		all = append(all, page...)
		next := h.Get(api.HeaderNextToken)
		if next == "" || len(page) == 0 {
			return all, nil
		}
		q.Set("nextToken", next)
	}
}

// RemoveSecret forgets a secret by id or name.
func (c *Client) RemoveSecret(ctx context.Context, secret string) error {
	return c.do(ctx, http.MethodDelete, "/secrets/"+url.PathEscape(secret), nil, nil, nil, nil)
}
