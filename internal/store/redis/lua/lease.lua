local node, max, ttl = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
tick(100)
local out = {}
while #out < max do
  local tenant = call('LPOP', round_key(node))
  if not tenant then break end
  local waiting = wait_key(node, tenant)
  local id = call('ZPOPMIN', waiting)[1] or ''
  if call('ZCARD', waiting) > 0 then call('RPUSH', round_key(node), tenant) end
  local j = call('HMGET', job_key(id), 'body', 'deadline', 'attempt', 'enqueued', 'why', 'payload')
  local deadline = tonumber(j[2] or 0)
  if not j[1] then
    -- evicted or deleted by hand: nothing is left of it to hand out
  elseif deadline > 0 and deadline <= now then
    finish({id = id, state = ''}, 'dead', 'deadline', '')
  else
    local attempt, token = tonumber(j[3]) + 1, call('INCR', P .. 'token')
    call('HSET', job_key(id), 'state', 'leased', 'attempt', attempt, 'token', token, 'until', num(now + ttl))
    schedule(id, now + ttl)
    out[#out + 1] = {j[1], attempt, token, j[4], j[5], j[6]}
  end
end
return out
