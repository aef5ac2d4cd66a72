// validatorUrl: without it Swagger UI shows the document to a service on the internet.
SwaggerUIBundle({ url: "/schema/", dom_id: "#docs", deepLinking: true, docExpansion: "list", validatorUrl: null });
