local id, token, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
if not held(id, token) then return {'conflict'} end
call('HSET', job_key(id), 'until', num(now + ttl))
schedule(id, now + ttl)
return {'ok'}
