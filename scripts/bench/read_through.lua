-- Read-through cache in nginx, on lua_shared_dict, as users of OpenResty write it.
--
-- It writes values without escaping, which is enough for the plain text of the benchmark. servers.py
-- replaces the port between @.

local ttl_seconds, pool_size, pool_idle_ms, timeout_ms = 3600, 1000, 60000, 5000

local key = ngx.var.uri:sub(#"/key/" + 1)
local cache = ngx.shared.cache
local value, from_cache = cache:get(key), "true"
if not value then
    local redis = require("nginx.redis"):new()
    redis:set_timeout(timeout_ms)
    local connected, problem = redis:connect("127.0.0.1", @REDIS@)
    if not connected then
        ngx.log(ngx.ERR, problem)
        return ngx.exit(503)
    end
    value, problem = redis:get(key)
    if not value then
        ngx.log(ngx.ERR, problem)
        return ngx.exit(502)
    elseif value == ngx.null then
        return ngx.exit(404)
    end
    redis:set_keepalive(pool_idle_ms, pool_size)
    cache:set(key, value, ttl_seconds)
    from_cache = "false"
end
local body = '{"value":"' .. value .. '","fromCache":' .. from_cache .. "}"
-- Without this header nginx would send chunks, which costs more.
ngx.header["Content-Length"] = #body
ngx.print(body)
